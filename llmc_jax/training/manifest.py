"""Whether a folder still is what was written: its files' sizes and checksums, in one of them.

The manifest is written last, so a folder that has one has everything; nothing depends on how the
file system renames.
"""

import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

from zlib_ng import zlib_ng

from llmc_jax.files import sync

NAME = "manifest.json"
PIECE = 1 << 20  # bytes read at once
THREADS = 4  # checksums are made without Python's lock
EMPTY = MappingProxyType({})


def write(folder: Path, *, without: str, written: Mapping[Path, tuple[int, int]] = EMPTY) -> None:
    """List the files of `folder`, but for `without`, in its manifest, once all are on the disk.

    written: sizes and checksums that are known already, by absolute path.
    """
    root = folder.absolute()
    paths = [path for path in sorted(root.rglob("*")) if path.name != without]
    with ThreadPoolExecutor(THREADS) as pool:
        files = [path for path in paths if path.is_file()]
        measured = pool.map(lambda path: written.get(path) or _measure(path), files)
        names = (path.relative_to(root).as_posix() for path in files)
        listed = dict(zip(names, measured, strict=True))
        list(pool.map(sync, [*paths, root, root.parent]))
    with open(folder / NAME, "w") as file:
        file.write(json.dumps(dict(files=listed, checksum=_checksum(listed)), indent=1))
        file.flush()
        os.fsync(file.fileno())
    sync(root)


def problem(folder: Path, *, contents: bool, only: str = "") -> str:
    """What is wrong with `folder`, naming the file; '' where nothing is.

    contents: read every byte, and not only the sizes. only: look at this file and no other.
    """
    try:
        manifest = json.loads((folder / NAME).read_text())
        files = manifest["files"]
        if manifest["checksum"] != _checksum(files):
            return f"{NAME} is damaged"
        names = [only] if only else list(files)
    except FileNotFoundError:
        return f"{NAME} is missing"
    except (OSError, ValueError, TypeError, KeyError):
        return f"{NAME} is damaged"

    def check(name: str) -> str:
        return _file_problem(folder / name, *files[name], contents)

    with ThreadPoolExecutor(THREADS) as pool:
        found = zip(names, pool.map(check, names), strict=True)
        return next((f"{name} {what}" for name, what in found if what), "")


def _file_problem(path: Path, size: int, checksum: int, contents: bool) -> str:
    """What is wrong with one file, '' where nothing is."""
    try:
        if (now := path.stat().st_size) != size:
            return f"has {now} bytes where {size} were written"
        if contents and _measure(path)[1] != checksum:
            return "has other bytes than were written"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return ""


def _measure(path: Path) -> tuple[int, int]:
    """Size and CRC-32 of a file."""
    size = checksum = 0
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(PIECE)
        while count := file.readinto(buffer):
            size += count
            checksum = zlib_ng.crc32(memoryview(buffer)[:count], checksum)
    return size, checksum


def _checksum(files: dict) -> int:
    return zlib_ng.crc32(json.dumps(files, sort_keys=True).encode())
