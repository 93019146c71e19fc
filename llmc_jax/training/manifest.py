"""Whether a folder still is what was written: its files' sizes and checksums, in one of them.

The manifest is written last, so a folder that has one has everything; nothing depends on how the
file system renames.
"""

import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NAME = "manifest.json"
PIECE = 1 << 22  # bytes read at once
THREADS = 4  # checksums are made without Python's lock


def write(folder: Path, *, without: str) -> None:
    """List the files of `folder`, but for `without`, in its manifest, once all are on the disk."""
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != without]
    with ThreadPoolExecutor(THREADS) as pool:
        files = {
            path.relative_to(folder).as_posix(): measured
            for path, measured in zip(paths, pool.map(_measure, paths), strict=True)
        }
    with open(folder / NAME, "w") as file:
        file.write(json.dumps(dict(files=files, checksum=_checksum(files)), indent=1))
        file.flush()
        os.fsync(file.fileno())


def problem(folder: Path, *, contents: bool) -> str:
    """What is wrong with `folder`, naming the file; '' where nothing is.

    contents: read every byte, and not only the sizes.
    """
    try:
        manifest = json.loads((folder / NAME).read_text())
        files = manifest["files"]
        if manifest["checksum"] != _checksum(files):
            return f"{NAME} is damaged"
    except FileNotFoundError:
        return f"{NAME} is missing"
    except (OSError, ValueError, TypeError, KeyError):
        return f"{NAME} is damaged"

    def check(name: str) -> str:
        return _file_problem(folder / name, *files[name], contents)

    with ThreadPoolExecutor(THREADS) as pool:
        found = zip(files, pool.map(check, files), strict=True)
        return next((f"{name} {what}" for name, what in found if what), "")


def _file_problem(path: Path, size: int, checksum: int, contents: bool) -> str:
    """What is wrong with one file, '' where nothing is."""
    try:
        if (now := path.stat().st_size) != size:
            return f"has {now} bytes where {size} were written"
        if contents and _measure(path, sync=False)[1] != checksum:
            return "has other bytes than were written"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return ""


def _measure(path: Path, *, sync: bool = True) -> tuple[int, int]:
    """Size and CRC-32 of a file; sync: and the file is on the disk."""
    size = checksum = 0
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(PIECE)
        while count := file.readinto(buffer):
            size += count
            checksum = zlib.crc32(memoryview(buffer)[:count], checksum)
        if sync:
            os.fsync(file.fileno())
    return size, checksum


def _checksum(files: dict) -> int:
    return zlib.crc32(json.dumps(files, sort_keys=True).encode())
