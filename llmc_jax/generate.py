"""Text from a trained model: python -m llmc_jax.generate --run=runs/quickstart --prompt='def '."""

import codecs
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import jax

from llmc_jax import program
from llmc_jax.config import BadInput, option
from llmc_jax.data.tokenizer import EOT, token_bytes, tokenizer
from llmc_jax.generation.draw import Choice
from llmc_jax.generation.sampler import SEED, make_generator
from llmc_jax.models import gpt2
from llmc_jax.trained import Opened, TrainedConfig, open_by_flags

USUAL = Choice()


@dataclass(frozen=True)
class GenerateConfig(TrainedConfig):
    """Which model, and what it is to write."""

    prompt: tuple[str, ...] = option(
        (), "text to continue; may be given several times; none: a new document"
    )
    prompts: str = option("", "file with a prompt a line", path=True)
    interactive: bool = option(False, "read prompts from standard input, and answer each at once")
    samples: int = option(1, "texts for each prompt, with --seed and those after it", minimum=1)
    batch_size: int = option(8, "texts that are generated at a time", minimum=1)
    tokens: int = option(128, "tokens to generate at most", minimum=1)
    temperature: float = option(
        USUAL.temperature, "below 1: surer, above: wilder; 0: always the likeliest token", minimum=0
    )
    top_k: int = option(USUAL.top_k, "draw from the k likeliest tokens; 0: from all", minimum=0)
    top_p: float = option(
        USUAL.top_p, "draw from the likeliest tokens that have this probability together", minimum=0
    )
    seed: int = option(SEED, "another seed, another text", minimum=0)
    slide: bool = option(
        False,
        "where the context is full go on with its last half, and take the end of a prompt that "
        "is too long, instead of ending and refusing",
    )


class Text:
    """A text that grows by tokens; what is returned of it are whole characters."""

    def __init__(self):
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """The characters that are complete with this token."""
        return self._decoder.decode(token_bytes(tokenizer(), token))

    def end(self) -> str:
        """What is left: a character that was not completed."""
        return self._decoder.decode(b"", final=True)


def main(cfg: GenerateConfig) -> None:
    """Print each prompt and its continuation; a single one as it grows."""
    prompts = read_prompts(cfg)
    opened = open_by_flags(cfg)
    generate = open_generator(cfg, opened)
    encode = partial(encode_prompt, cfg, opened.trained.model.V, opened.T)
    if cfg.interactive:
        return converse(generate, encode, cfg.seed)
    encoded = [(prompt, encode(prompt)) for prompt in prompts]  # all, before the first is continued
    if len(prompts) * cfg.samples == 1:
        print(prompts[0], end="")
        stream(generate, encoded[0][1], cfg.seed)
        return
    # One after the other, so that a million samples begin as soon as one.
    rows = ((*row, cfg.seed + number) for row in encoded for number in range(cfg.samples))
    while some := list(islice(rows, cfg.batch_size)):
        print_texts(generate, some)


def read_prompts(cfg: GenerateConfig) -> list[str]:
    """The prompts of the flags. Raises BadInput for flags that do not go together."""
    if not 0 < cfg.top_p <= 1:
        raise BadInput(f"--top_p={cfg.top_p} must be above 0 and at most 1 (which is all tokens).")
    given = [bool(cfg.prompt), bool(cfg.prompts), cfg.interactive]
    if sum(given) > 1:
        raise BadInput("--prompt, --prompts and --interactive all give prompts; take one of them.")
    if cfg.interactive and cfg.samples > 1:
        raise BadInput("--samples is for --prompt and --prompts; leave it out of --interactive.")
    if not cfg.prompts:
        return list(cfg.prompt) or [""]
    try:  # bytes: read_text would end lines at a CR too, and read in the locale's encoding
        text = Path(cfg.prompts).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise BadInput(
            f"--prompts={cfg.prompts} cannot be read: {why}; name a file with a prompt a line."
        ) from error
    if not text:
        raise BadInput(f"--prompts={cfg.prompts} is empty; it must have a prompt a line.")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def open_generator(cfg: GenerateConfig, opened: Opened) -> Callable:
    """A function of prompts and their seeds: the next token of each, again and again."""
    model = opened.trained.model
    if model.V <= EOT:
        flag = f"--model={cfg.model}" if cfg.model else f"--run={cfg.run}"
        raise BadInput(
            f"{flag} has a vocabulary of {model.V} tokens, without GPT-2's end of a text ({EOT}); "
            f"name a model that was trained with GPT-2's tokenizer."
        )
    if cfg.top_k > model.V:
        raise BadInput(f"--top_k={cfg.top_k} must be from 0 to {model.V}.")
    generate = make_generator(opened.ops, model, opened.dtype, opened.T)
    cast = jax.jit(gpt2.cast, static_argnames="dtype")
    params = cast(opened.trained.params, opened.dtype)  # once for all prompts
    options = dict(choice=Choice(cfg.temperature, cfg.top_k, cfg.top_p), end=EOT, slide=cfg.slide)

    def of_prompts(prompts: list[list[int]], seeds: list[int]) -> Iterator[list[int | None]]:
        return generate(params, prompts, cfg.tokens, seeds=seeds, **options)

    return of_prompts


def encode_prompt(cfg: GenerateConfig, V: int, T: int, prompt: str) -> list[int]:
    """Its tokens, after the end of another text. Raises BadInput where the model cannot take them.

    V, T: the model's vocabulary and the context's length.
    """
    tokens = [EOT, *tokenizer().encode_ordinary(prompt)]
    if max(tokens) >= V:
        raise BadInput(
            f"the prompt has token {max(tokens)} of GPT-2's tokenizer, but the model's vocabulary "
            f"ends at {V - 1}."
        )
    if len(tokens) > T and not cfg.slide:
        raise BadInput(
            f"the prompt {prompt[:30]!r}... has {len(tokens)} tokens (one marks its beginning) and "
            f"the context is {T}; shorten it, or add --slide to take its end."
        )
    return tokens


def stream(generate: Callable, tokens: list[int], seed: int) -> None:
    """Print the continuation of one prompt, each character when it is complete."""
    text = Text()
    for (token,) in generate([tokens], [seed]):
        if token is not None:
            print(text.add(token), end="", flush=True)
    print(text.end())


def print_texts(generate: Callable, rows: list[tuple[str, list[int], int]]) -> None:
    """Print several texts, one after the other; rows: prompts, their tokens, and seeds."""
    texts = [Text() for _ in rows]
    written = [prompt for prompt, _, _ in rows]
    for tokens in generate([row[1] for row in rows], [row[2] for row in rows]):
        for place, token in enumerate(tokens):
            if token is not None:
                written[place] += texts[place].add(token)
    for (prompt, _, seed), text, rest in zip(rows, written, texts, strict=True):
        print(f"=== {prompt!r}, seed {seed}\n{text}{rest.end()}", flush=True)


def converse(generate: Callable, encode: Callable, seed: int) -> None:
    """Answer each line of standard input until it ends; Ctrl-C ends an answer."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise BadInput(f"--interactive: standard input is not UTF-8 ({error}).") from error
        if not line:
            return
        prompt = line.removesuffix("\n")
        try:
            tokens = encode(prompt)
            print(prompt, end="")
            stream(generate, tokens, seed)
        except BadInput as error:
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    program.run(main, GenerateConfig)
