"""Any UTF-8 text files; each is a document, and the end of the last ones is for validation."""

import codecs
import mmap
import re
from collections.abc import Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path

from llmc_jax.config import BadInput
from llmc_jax.data.sources import Document, Source, Stream, describe, find_files, last, numbered

# In front of such a space or line end validation may begin. Behind ASCII a "\r" is none: texts of
# ASCII were always cut so, and shards of them that are there are gone on with.
BREAK = re.compile(rb"(?<=[!-~])[ \n]|(?<=[\x80-\xff])[ \r\n]")
CHUNK = 1 << 20  # bytes looked at together


def source(pattern: str, *, shard_tokens: int, val_fraction: float) -> Source:
    """The files that `pattern` (globs separated by commas) names.

    The last `val_fraction` of their bytes, from the next space on, is for validation. Raises
    BadInput where nothing matches, a file is empty, unreadable or not UTF-8.
    """
    paths = find_files("text", pattern)
    inputs = [describe(path) for path in paths]
    for path in paths:
        _check(path)
    sizes = [file["bytes"] for file in inputs]
    *starts, total = accumulate(sizes, initial=0)
    cut = last(total, val_fraction)
    split = next(i for i, start in enumerate(starts) if start + sizes[i] >= cut)
    at, behind = _break(paths[split], cut - starts[split])
    if behind > 127:  # an older version did not cut there: its shards are not gone on with
        inputs[split]["validation_from"] = at
    cut = starts[split] + at

    def documents(skip: int, begin: int, end: int) -> Iterator[Document]:
        """What the files have in [begin, end) of all bytes."""
        number = 0
        for path, start, size in zip(paths, starts, sizes, strict=True):
            first, stop = max(begin - start, 0), min(end - start, size)
            if first < stop:
                if number >= skip:
                    yield Document(_read(path, first, stop), start + stop - begin)
                number += 1

    def stream(name: str, begin: int, end: int) -> Stream:
        shards = partial(numbered, f"text_{name}", shard_tokens)
        return Stream(partial(documents, begin=begin, end=end), end - begin, "B", shards)

    return Source("text", inputs, [stream("train", 0, cut), stream("val", cut, total)])


def _break(path: Path, offset: int) -> tuple[int, int]:
    """The first place to cut at from byte `offset` on, and the byte in front; else the end, and 0.

    At 0 there is no need to look for one.
    """
    if not offset:
        return 0, 0
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = BREAK.search(data, offset)
        return (found.start(), data[found.start() - 1]) if found else (len(data), 0)


def _check(path: Path) -> None:
    """Raises BadInput where the file is empty or not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open(path, "rb") as file:
        try:
            while chunk := file.read(CHUNK):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            byte = file.tell() - len(error.object) + error.start
            raise BadInput(
                f"{path} is not UTF-8 (byte {byte}); convert it, for instance with iconv."
            ) from error
        if not file.tell():
            raise BadInput(f"{path} is empty; leave it out of --input.")


def _read(path: Path, begin: int, end: int) -> str:
    """The text in the bytes [begin, end), as it is: read_text would make one of two at CR LF."""
    try:
        with open(path, "rb") as file:
            file.seek(begin)
            return file.read(end - begin).decode()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}.") from error
