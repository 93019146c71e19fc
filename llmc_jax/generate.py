"""Text from a trained model: python -m llmc_jax.generate --run=runs/quickstart --prompt='def '."""

import sys
from dataclasses import dataclass

import jax

from llmc_jax import ops, program
from llmc_jax.config import BadInput, option
from llmc_jax.data.tokenizer import EOT, tokenizer
from llmc_jax.trained import open_trained
from llmc_jax.training import parallel, sampler


@dataclass(frozen=True)
class GenerateConfig:
    """Which model, and what it is to write."""

    run: str = option("", "directory of a run (the --output_dir of its training)")
    model: str = option(
        "", "instead of --run: a model file of llm.c (PATH.bin), a folder of Hugging Face (hf:PATH)"
    )
    step: int = option(-1, "step of the checkpoint; -1: the newest", minimum=-1)
    prompt: str = option("", "text to continue; empty: a new document")
    tokens: int = option(128, "tokens to generate", minimum=1)
    temperature: float = option(sampler.TEMPERATURE, "below 1: surer, above: wilder", minimum=0)
    top_k: int = option(sampler.TOP_K, "draw from the k likeliest tokens; 1: always the likeliest")
    seed: int = option(sampler.SEED, "another seed, another text", minimum=0)
    ops: str = option("auto", "implementation of the ops, as in training")


def main(cfg: GenerateConfig) -> None:
    """Print the prompt and its continuation, token by token; stops at the end of the text."""
    mesh = parallel.make_mesh()
    if cfg.temperature == 0:
        raise BadInput("--temperature must be above 0; --top_k=1 takes the likeliest token.")
    trained = open_trained(mesh, run=cfg.run, model=cfg.model, step=cfg.step)
    model, params, dtype = trained[:3]
    if not 1 <= cfg.top_k <= model.V:
        raise BadInput(f"--top_k={cfg.top_k} must be from 1 to {model.V}.")
    chosen, _ = ops.select(cfg.ops, jax.default_backend(), model.C // model.NH)
    prompt = [EOT, *tokenizer().encode_ordinary(cfg.prompt)]
    sample = sampler.make_sampler(chosen, model, dtype)
    options = dict(seed=cfg.seed, temperature=cfg.temperature, top_k=cfg.top_k)
    print(cfg.prompt, end="", flush=True)
    text = b""
    for token in sample(params, prompt, cfg.tokens, **options):
        if token == EOT:
            break
        text = _write(text + tokenizer().decode_single_token_bytes(token))
    print(text.decode(errors="replace"))


def _write(text: bytes) -> bytes:
    """Print the characters that are complete; returns the bytes of one that is not yet."""
    try:
        sys.stdout.write(text.decode())
    except UnicodeDecodeError as error:
        if error.end < len(text) or len(text) - error.start > 3:  # broken, not unfinished
            sys.stdout.write(text.decode(errors="replace"))
            return b""
        sys.stdout.write(text[: error.start].decode())
        return text[error.start :]
    finally:
        sys.stdout.flush()
    return b""


if __name__ == "__main__":
    program.run(main, GenerateConfig)
