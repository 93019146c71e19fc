"""Files of JSON lines; one field of each line is a document, the last lines are for validation."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from llmc_jax.config import BadInput
from llmc_jax.data.sources import Document, Source, Stream, describe, find_files, last, numbered


def source(pattern: str, *, field: str, shard_tokens: int, val_fraction: float) -> Source:
    """The files that `pattern` names. Lines that begin in the last `val_fraction` of the bytes are
    for validation; empty lines are passed over. Raises BadInput, also while documents are read.
    """
    paths = find_files("jsonl", pattern)
    inputs = [describe(path) for path in paths]
    size = sum(file["bytes"] for file in inputs)
    cut = last(size, val_fraction)
    if not any(True for _ in _lines(paths)):
        raise BadInput(f"--input={pattern} holds no lines; name other files.")

    def documents(skip: int, begin: int, end: int) -> Iterator[Document]:
        number = 0
        for path, line, start, data in _lines(paths):
            if start >= end:
                return
            if start >= begin:
                if number >= skip:
                    stop = min(start + len(data), end)
                    yield Document(_field(path, line, data, field), stop - begin)
                number += 1

    def stream(name: str, begin: int, end: int) -> Stream:
        shards = partial(numbered, f"jsonl_{name}", shard_tokens)
        return Stream(partial(documents, begin=begin, end=end), end - begin, "B", shards)

    return Source("jsonl", inputs, [stream("train", 0, cut), stream("val", cut, size)])


def _lines(paths: list[Path]) -> Iterator[tuple[Path, int, int, bytes]]:
    """File, line number, where it begins in all bytes, and bytes of each line that is not blank."""
    start = 0
    for path in paths:
        with open(path, "rb") as file:
            for number, data in enumerate(file, 1):
                if not data.isspace():
                    yield path, number, start, data
                start += len(data)


def _field(path: Path, line: int, data: bytes, field: str) -> str:
    try:
        values = json.loads(data)
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}, line {line} is not UTF-8; convert the file.") from error
    except (ValueError, RecursionError) as error:  # also numbers too long, and lists too deep
        raise BadInput(f"{path}, line {line} is not JSON ({error}); correct the line.") from error
    text = values.get(field) if isinstance(values, dict) else None
    if not isinstance(text, str):
        names = ", ".join(values) if isinstance(values, dict) else "no object"
        raise BadInput(
            f"{path}, line {line} has no text in the field '{field}' (it has {names}); name "
            f"another with --field, or correct the line."
        )
    return text
