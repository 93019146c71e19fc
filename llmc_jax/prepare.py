"""Make token shards from text: python -m llmc_jax.prepare --source=pystdlib."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmc_jax import program
from llmc_jax.config import BadInput, option
from llmc_jax.data import tokens
from llmc_jax.data.sources import pystdlib, text, tinyshakespeare
from llmc_jax.data.tokenizer import EOT, tokenizer


@dataclass(frozen=True)
class PrepareConfig:
    """What to tokenise, and where to put it."""

    source: str = option(
        "pystdlib",
        "pystdlib: this Python's standard library and documentation; tinyshakespeare: llm.c's; "
        "text: the UTF-8 files of --input",
        choices=("pystdlib", "tinyshakespeare", "text"),
    )
    input: str = option("", "files for --source=text (globs, comma-separated), or a local copy")
    output_dir: str = option("", "directory for the shards; empty: data/SOURCE")
    val_fraction: float = option(
        0.05, "share of the tokens of --source=text, at its end, for validation", minimum=0
    )
    shard_tokens: int = option(100_000_000, "most tokens in a shard", minimum=1)


def main(cfg: PrepareConfig) -> None:
    """Write SOURCE_train_000000.bin, ..., SOURCE_val_000000.bin into the output directory."""
    train, val = _tokens(cfg)
    folder = Path(cfg.output_dir or f"data/{cfg.source}")
    shards = _shards(f"{cfg.source}_train", train, cfg) | _shards(f"{cfg.source}_val", val, cfg)
    _refuse_other_shards(folder, cfg.source, shards)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"--output_dir={folder} cannot be made: {error.strerror}; name another directory."
        ) from error
    for name, part in shards.items():
        tokens.write_shard(folder / name, part)
        print(f"{folder / name}: {len(part):,} tokens")
    print(
        f"train on them with --train_data='{folder}/{cfg.source}_train_*.bin' "
        f"--val_data='{folder}/{cfg.source}_val_*.bin'"
    )


def _tokens(cfg: PrepareConfig) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation tokens of the chosen source."""
    if cfg.source == "tinyshakespeare":
        return tinyshakespeare.tokens(cfg.input)
    if cfg.source == "pystdlib":
        train, val = pystdlib.documents()
        return _encode(train), _encode(val)
    if cfg.val_fraction >= 1:
        raise BadInput("--val_fraction must be below 1: the rest is what is trained on.")
    encoded = _encode(text.documents(cfg.input))
    cut = len(encoded) - int(len(encoded) * cfg.val_fraction)
    return encoded[:cut], encoded[cut:]


def _encode(documents: list[str]) -> np.ndarray:
    """The tokens of all documents, each after an end-of-text token; uint16."""
    batches = tokenizer().encode_ordinary_batch(documents, num_threads=os.cpu_count())
    return np.concatenate([np.array([EOT, *batch], np.uint16) for batch in batches])


def _shards(stem: str, data: np.ndarray, cfg: PrepareConfig) -> dict[str, np.ndarray]:
    """File name -> its tokens."""
    starts = range(0, len(data), cfg.shard_tokens)
    return {
        f"{stem}_{number:06d}.bin": data[start : start + cfg.shard_tokens]
        for number, start in enumerate(starts)
    }


def _refuse_other_shards(folder: Path, source: str, shards: dict[str, np.ndarray]) -> None:
    """Raises BadInput where `folder` has shards of this source with other content."""
    for path in sorted(folder.glob(f"{source}_*.bin")):
        if path.name not in shards or not np.array_equal(
            tokens.read_shard(path), shards[path.name]
        ):
            raise BadInput(
                f"{path} holds other tokens than would be written; remove it or name another "
                f"--output_dir."
            )


if __name__ == "__main__":
    program.run(main, PrepareConfig)
