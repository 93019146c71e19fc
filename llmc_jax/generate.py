"""Text from a trained model: python -m llmc_jax.generate --run=runs/quickstart --prompt='def '."""

import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from llmc_jax import ops, program
from llmc_jax.config import BadInput, ModelConfig, option
from llmc_jax.data.tokenizer import EOT, tokenizer
from llmc_jax.interop.source import open_model
from llmc_jax.models import gpt2
from llmc_jax.models.gpt2 import Params
from llmc_jax.training import parallel, sampler
from llmc_jax.training.checkpoint import Checkpointer
from llmc_jax.training.run_dir import RunDir


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
    model, params, dtype = _read_weights(cfg, mesh) if cfg.model else _restore(cfg, mesh)
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


def _read_weights(cfg: GenerateConfig, mesh) -> tuple[ModelConfig, Params, str]:
    """Sizes, parameters and dtype of the model that --model names."""
    if cfg.run:
        raise BadInput("--run and --model both name a model; give one of them.")
    model, weights = open_model(cfg.model)
    if weights is None:
        raise BadInput(
            f"--model={cfg.model} has no weights; name a file (PATH.bin, hf:PATH), or a --run."
        )
    dtype = "float32" if weights.wte.dtype == np.float32 else "bfloat16"
    weights = jax.tree.map(lambda p: np.asarray(p, np.float32), weights)
    return model, parallel.replicate(weights, mesh), dtype


def _restore(cfg: GenerateConfig, mesh) -> tuple[ModelConfig, Params, str]:
    """Sizes, parameters and dtype of the run's checkpoint."""
    with Checkpointer(_folder(cfg)) as checkpoints:
        step = _choose_step(cfg, checkpoints.steps())
        saved = checkpoints.restore_run(step)
        model = ModelConfig(**saved["model"])
        like = parallel.replicated_like(gpt2.shapes(model), mesh)
        return model, checkpoints.restore_params(step, like), saved["config"]["dtype"]


def _folder(cfg: GenerateConfig) -> Path:
    """The folder of the run's checkpoints."""
    if not cfg.run:
        raise BadInput("--run is needed: the --output_dir of a training run (or --model=FILE).")
    folder = RunDir(Path(cfg.run)).checkpoints
    if not folder.is_dir():
        raise BadInput(f"--run={cfg.run} has no checkpoints; train with --checkpoint_every.")
    return folder


def _choose_step(cfg: GenerateConfig, steps: list[int]) -> int:
    """The step to load, of those that were saved."""
    if not steps:
        raise BadInput(f"--run={cfg.run} has no complete checkpoint yet.")
    step = steps[-1] if cfg.step == -1 else cfg.step
    if step not in steps:
        raise BadInput(f"--step={step} was not saved; {cfg.run} has {', '.join(map(str, steps))}.")
    return step


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
