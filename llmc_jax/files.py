"""Files that appear whole or not at all, what is in them, and how they are set aside."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from llmc_jax.config import BadInput


@contextmanager
def new_file(path: str | Path, *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """A file to write, under a temporary name until all is written without an error.

    Raises BadInput where `path` exists and is not to be overwritten, or cannot be written.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise BadInput(f"{path} exists; add --overwrite to replace it, or name another file.")
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def set_aside(path: Path, why: str) -> Path:
    """Rename a file or folder to a name with `why` at its end that is free; that name."""
    number, name = 0, path.with_name(f"{path.name}.{why}")
    while name.exists():
        number += 1
        name = name.with_suffix(f".{why}{number}")
    return path.rename(name)


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
