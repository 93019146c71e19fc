"""One process at a time that writes an output directory."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llmc_jax.config import BadInput

NAME = "lock"


@contextmanager
def locked(folder: Path, flag: str = "output_dir") -> Iterator[str]:
    """Hold the lock of a directory; the system frees it when the process ends, however it does.

    Gives a sentence about the holder before, where that one died with it, or ''. Raises BadInput
    that names the process that has it, and `flag`.
    """
    try:
        # Without a buffer: what a full disk does not take would be tried again on closing.
        file = open(folder / NAME, "ab+", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise BadInput(
            f"--{flag}={folder} cannot be written: {error.strerror}; name another directory."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(_in_use(folder, flag, file)) from error
        except OSError as error:  # a file system without locks
            yield f"{folder} cannot be locked ({error.strerror}): see that no other run is in it."
            return
        # Workers that are forked would hold it on for a moment after this process was killed.
        os.register_at_fork(after_in_child=file.close)
        before = _holder(file)
        holder = dict(pid=os.getpid(), host=socket.gethostname(), since=time.strftime("%F %T"))
        _write(file, json.dumps(holder))
        try:
            yield f"{before} had {folder} and ended without giving it back." if before else ""
        finally:
            _write(file, "")


def refuse_in_use(folder: Path, flag: str = "output_dir") -> None:
    """Raises BadInput, as `locked` does, where another process holds the directory's lock now."""
    try:
        file = open(folder / NAME, "rb")  # noqa: SIM115
    except OSError:
        return
    with file, suppress(OSError):  # on file systems without locks nobody holds one
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(_in_use(folder, flag, file)) from error


def _in_use(folder: Path, flag: str, file) -> str:
    return (
        f"--{flag}={folder} is in use by {_holder(file) or 'another process'}; wait for it to end, "
        f"or name another directory."
    )


def _holder(file) -> str:
    """Who the lock's file names, in words; '' for nobody."""
    file.seek(0)
    try:
        holder = json.loads(file.read())
        return f"process {holder['pid']} on {holder['host']} (since {holder['since']})"
    except (ValueError, KeyError, TypeError):
        return ""


def _write(file, text: str) -> None:
    """The whole contents of the file; it only informs, so a full disk is no reason to stop."""
    with suppress(OSError):
        file.truncate(0)  # it is open to append to: what is written next is its beginning
        file.write(text.encode())
