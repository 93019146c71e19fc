"""Parquet files; one column's values are the documents, the last rows are for validation."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from llmc_jax.config import BadInput
from llmc_jax.data.sources import Document, Source, Stream, describe, find_files, last, numbered

ROWS = 1000  # read at once


def source(pattern: str, *, field: str, shard_tokens: int, val_fraction: float) -> Source:
    """The files that `pattern` names. The last `val_fraction` of all rows is for validation.

    Raises BadInput where nothing matches or a file is not parquet or lacks the column.
    """
    paths = find_files("parquet", pattern)
    size = sum(rows(paths, field))
    if not size:
        raise BadInput(f"--input={pattern} holds no rows; name other files.")
    cut = last(size, val_fraction)

    def stream(name: str, begin: int, end: int) -> Stream:
        shards = partial(numbered, f"parquet_{name}", shard_tokens)
        rows_of = partial(documents, paths=paths, field=field, begin=begin, end=end)
        return Stream(rows_of, end - begin, "documents", shards)

    inputs = [describe(path) for path in paths]
    return Source("parquet", inputs, [stream("train", 0, cut), stream("val", cut, size)])


def rows(paths: list[Path], field: str) -> list[int]:
    """How many rows each file has. Raises BadInput, also where one lacks the column `field`."""
    counts = []
    for path in paths:
        with _opened(path) as file:
            names = file.schema_arrow.names
            if field not in names:
                raise BadInput(
                    f"{path} has no column '{field}' (it has {', '.join(names)}); name another "
                    f"with --field."
                )
            counts.append(file.metadata.num_rows)
    return counts


def documents(
    skip: int, *, paths: list[Path], field: str, begin: int, end: int
) -> Iterator[Document]:
    """The column's values in the rows [begin, end) of all files, but for the first `skip`. Row
    groups before are not read."""
    row, first = 0, begin + skip
    for path, count in zip(paths, rows(paths, field), strict=True):
        if row + count <= first:
            row += count
            continue
        with _opened(path) as file:
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                if row + size > first and row < end:
                    for number, text in enumerate(_texts(path, file, group, field), row):
                        if first <= number < end:
                            yield Document(text, number + 1 - begin)
                row += size


def _texts(path: Path, file, group: int, field: str) -> Iterator[str]:
    from pyarrow import ArrowException

    row = sum(file.metadata.row_group(before).num_rows for before in range(group))
    try:
        for batch in file.iter_batches(batch_size=ROWS, row_groups=[group], columns=[field]):
            for value in batch.column(0).to_pylist():
                row += 1
                if not isinstance(value, str):
                    raise BadInput(
                        f"{path}, row {row} has no text in the column '{field}' (it is "
                        f"{batch.schema.field(0).type}, here {value!r:.30}); name another with "
                        f"--field, or correct the row."
                    )
                yield value
    except (ArrowException, OSError) as error:
        raise _broken(path, error) from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} has text in the column '{field}' that is not UTF-8.") from error


def _opened(path: Path):
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise BadInput(f"{path} is read with pyarrow: pip install pyarrow.") from error
    try:
        return ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> BadInput:
    return BadInput(
        f"{path} cannot be read as parquet ({str(error).splitlines()[0]}); fetch or make it again."
    )
