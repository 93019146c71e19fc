"""Any UTF-8 text files; each is a document, and the end of the last ones is for validation."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from llmc_jax.config import BadInput
from llmc_jax.data.encode import BREAK
from llmc_jax.data.sources import Document, Source, Stream, describe, find_files, last, numbered


def source(pattern: str, *, shard_tokens: int, val_fraction: float) -> Source:
    """The files that `pattern` (globs separated by commas) names.

    The last `val_fraction` of their bytes, from the next space on, is for validation. Raises
    BadInput where nothing matches, a file is empty, unreadable or not UTF-8.
    """
    paths = find_files("text", pattern)
    inputs = [describe(path) for path in paths]
    for path in paths:
        _read(path)
    sizes = [file["bytes"] for file in inputs]
    cut = last(sum(sizes), val_fraction)
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    split = next(i for i, end in enumerate(ends) if end >= cut)

    def documents(skip: int, *, val: bool) -> Iterator[Document]:
        first, stop = (split, len(paths)) if val else (0, split + 1)
        number = 0
        for i in range(first, stop):
            text = _read(paths[i])
            if i == split:
                at = _break(text, cut - (ends[i] - sizes[i]))
                text = text[at:] if val else text[:at]
            if text:
                if number >= skip:
                    yield Document(text, ends[i] - (cut if val else 0))
                number += 1

    def stream(name: str, size: int) -> Stream:
        shards = partial(numbered, f"text_{name}", shard_tokens)
        return Stream(partial(documents, val=name == "val"), size, "B", shards)

    return Source("text", inputs, [stream("train", cut), stream("val", sum(sizes) - cut)])


def _break(text: str, offset: int) -> int:
    """The first place to cut at, in characters, from `offset` bytes on; else the text's end."""
    if not offset:
        return 0
    found = BREAK.search(text, len(text.encode()[:offset].decode(errors="ignore")))
    return found.start() if found else len(text)


def _read(path: Path) -> str:
    try:
        text = path.read_bytes().decode()  # as it is: read_text would make one of two at CR LF
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path} is not UTF-8 (byte {error.start}); convert it, for instance with iconv."
        ) from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}.") from error
    if not text:
        raise BadInput(f"{path} is empty; leave it out of --input.")
    return text
