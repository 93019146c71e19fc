"""Where training text comes from, one module a source.

A source is streams of documents in an order that never changes, and the names of the shards that
each stream's tokens fill one after another.
"""

import glob
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from llmc_jax.config import BadInput
from llmc_jax.files import refuse_no_file, sha256_of


class Document(NamedTuple):
    text: str
    end: int  # how much of its stream's `size` has been read with it


class Stream(NamedTuple):
    documents: Callable[[int], Iterator[Document]]  # from the document of this number on
    size: int  # of the whole stream, in `unit`s: for the progress bar only
    unit: str
    shards: Callable[[], Iterator[tuple[str, int]]]  # file names, and most tokens in each


class Source(NamedTuple):
    stem: str  # the shards are called STEM_train_*.bin and STEM_val_*.bin
    inputs: list[dict]  # what it was made of: file, bytes, sha256
    streams: list[Stream]


def numbered(name: str, tokens: int, first: int = 0) -> Iterator[tuple[str, int]]:
    """Shards NAME_000000.bin, NAME_000001.bin, ... of so many tokens."""
    return ((f"{name}_{number:06d}.bin", tokens) for number in itertools.count(first))


def at_hand(texts: list[str], shards: Callable[[], Iterator[tuple[str, int]]]) -> Stream:
    """The stream of texts that are in memory."""

    def documents(skip: int) -> Iterator[Document]:
        return (Document(text, i + 1) for i, text in enumerate(texts) if i >= skip)

    return Stream(documents, len(texts), "documents", shards)


def find_files(source: str, pattern: str) -> list[Path]:
    """The files that globs separated by commas name, in order. Raises BadInput."""
    if not pattern:
        raise BadInput(f"--source={source} needs --input: files or globs, separated by commas.")
    paths = []
    for part in pattern.split(","):
        found = sorted(glob.glob(part))
        if not found:
            raise BadInput(f"--input={part} matches no file; correct the name or the pattern.")
        for path in found:
            if Path(path).is_dir():
                raise BadInput(
                    f"--input={part}: {path} is a directory; name only files, those in it by "
                    f"{path}/*."
                )
        paths += [Path(path) for path in found]
    return paths


def describe(path: Path) -> dict:
    """What the manifest says of an input file. Raises BadInput where it cannot be read."""
    refuse_no_file(path)  # it is read again for its text
    try:
        return dict(file=path.name, bytes=path.stat().st_size, sha256=sha256_of(path))
    except OSError as error:
        raise BadInput(
            f"{path} cannot be read: {error.strerror}; mend that, or name other files with --input."
        ) from error


def last(total: int, fraction: float) -> int:
    """Where the last `fraction` of `total` begins: what comes from there on is for validation."""
    if fraction >= 1:
        raise BadInput("--val_fraction must be below 1: the rest is what is trained on.")
    return total - int(total * fraction)
