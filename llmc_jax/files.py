"""Files that appear whole or not at all, what is in them, and how they are set aside."""

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from llmc_jax.config import BadInput


@contextmanager
def new_file(path: str | Path, *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """A file to write, under a temporary name until all of it is on the disk: else, after a power
    loss, a name may be there with nothing behind it, and what it named before is gone.

    Raises BadInput where `path` exists and is not to be overwritten, or cannot be written.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        _refuse_what_is_there(path, overwrite=overwrite)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror}.") from error
    finally:
        with suppress(OSError):  # it is what went wrong first that is said
            temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def _refuse_what_is_there(path: Path, *, overwrite: bool, given: str = "") -> None:
    """Raises BadInput where there is something at `path` that is not to be replaced."""
    if path.is_dir():
        raise BadInput(f"{given}{path} is a directory; name a file.")
    if path.exists() and not path.is_file():  # a device would be replaced
        raise BadInput(f"{given}{path} is no file that can be replaced; name another.")
    if path.exists() and not overwrite:
        raise BadInput(
            f"{given}{path} exists; add --overwrite to replace it, or name another file."
        )


def refuse_unwritable(path: str | Path, given: str = "", *, overwrite: bool = False) -> None:
    """Raises BadInput where `new_file` would, for all but a disk that is full by then: to be asked
    before there is a result that would be lost.

    given: what the path is said behind, as --output=. A file without a name is made and removed.
    """
    path = Path(path)
    try:
        _refuse_what_is_there(path, overwrite=overwrite, given=given)
        _temporary(path).exists()  # its name may be too long where that of `path` is not
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not path.parent.exists():
            raise BadInput(
                f"{given}{path} is in no directory that exists; make it first."
            ) from error
        raise BadInput(
            f"{given}{path} cannot be written: {error.strerror}; name another."
        ) from error


def refuse_unwritable_folder(path: str | Path, given: str = "") -> None:
    """Raises BadInput where files could not be made in a folder, nor it where it is not there; it
    is not made. As `refuse_unwritable` says."""
    path = Path(path)
    try:
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        how = "written" if os.path.isdir(path) else "made"  # Path.is_dir may fail as that did
        raise BadInput(
            f"{given}{path} cannot be {how}: {error.strerror}; name another directory."
        ) from error


def sync(path: Path) -> None:
    """Wait until a file, or the list of a folder's files, is on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:  # not all file systems can for a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(opened)


def refuse_no_file(path: str | Path) -> None:
    """Raises BadInput where `path` is there and is no file: a pipe is waited for without end, and
    can be read once only."""
    if (path := Path(path)).is_dir():
        raise BadInput(f"{path} cannot be read: {os.strerror(errno.EISDIR)}.")
    if path.exists() and not path.is_file():
        raise BadInput(f"{path} cannot be read: it is a pipe or a device; name a file.")


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
