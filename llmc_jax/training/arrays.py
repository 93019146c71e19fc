"""Arrays in orbax's format, each in a file of nothing but its bytes.

That is zarr 2, uncompressed, an array in one chunk: what orbax itself writes with use_ocdbt=False,
and can read. Its own handler takes a millisecond of Python for each array and leaves checksums to
be made from what is read back; here they are made from the bytes on their way to the disk.
"""

import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from zlib_ng import zlib_ng

PIECE = 1 << 20  # bytes between two checksums: what has just been summed is still in the cache
THREADS = 4  # some wait for the disk while others copy
ALIGNMENT = 64  # of JAX's arrays
SYNC_AT_ONCE = 1 << 20  # bytes from which on a file goes to the disk while others are written


class ArrayFiles(ocp.type_handlers.ArrayHandler):
    """Orbax's handler of arrays, with other hands; `written` grows while it writes."""

    def __init__(self):
        super().__init__()
        self.written = {}  # size and CRC-32 of each file

    def typestr(self) -> str:
        """What orbax makes of the arrays where it is told nothing about devices."""
        return "np.ndarray"

    async def serialize(self, values, infos, args=None) -> list:
        """Write host arrays. Small files may not be on the disk yet; raises OSError."""
        with ThreadPoolExecutor(THREADS) as pool:
            for written in pool.map(_write, values, [Path(info.path) for info in infos]):
                self.written |= written
        return []

    async def deserialize(self, infos, args=None) -> list[jax.Array]:
        """Read arrays to where the shardings of `args` say."""
        if infos[0].is_ocdbt_checkpoint:  # many arrays a file: of versions before 2026-11-25
            return await super().deserialize(infos, args)
        with ThreadPoolExecutor(THREADS) as pool:
            paths = [Path(info.path) for info in infos]
            return list(pool.map(_read, paths, [arg.sharding for arg in args]))


def handler(files: ArrayFiles) -> ocp.PyTreeCheckpointHandler:
    """Orbax's handler of trees that gives arrays to `files`."""
    kinds = ocp.type_handlers.create_type_handler_registry((np.ndarray, files), (jax.Array, files))
    return ocp.PyTreeCheckpointHandler(use_ocdbt=False, type_handler_registry=kinds)


def _write(array: np.ndarray, folder: Path) -> dict[Path, tuple[int, int]]:
    """The two files of an array: what it is, and its bytes; the size and CRC-32 of each."""
    folder.mkdir()
    form = dict(
        zarr_format=2,
        shape=array.shape,
        chunks=array.shape,
        dtype=array.dtype.str if array.dtype.isbuiltin == 1 else array.dtype.name,
        order="C",
        compressor=None,
        filters=None,
        fill_value=None,
        dimension_separator=".",
    )
    contents = {
        folder / ".zarray": json.dumps(form).encode(),
        _chunk(folder, array.shape): array.reshape(-1).view(np.uint8),
    }
    return {path: _write_file(path, memoryview(data)) for path, data in contents.items()}


def _write_file(path: Path, data: memoryview) -> tuple[int, int]:
    """Write a file; its size and CRC-32."""
    done = checksum = 0
    with open(path, "wb", buffering=0) as file:
        while done < len(data):
            count = file.write(data[done : done + PIECE])
            checksum = zlib_ng.crc32(data[done : done + count], checksum)
            done += count
        if done >= SYNC_AT_ONCE:
            os.fsync(file.fileno())
    return done, checksum


def _read(folder: Path, sharding: jax.sharding.Sharding) -> jax.Array:
    """An array where its sharding says, in memory of JAX's own."""
    form = json.loads((folder / ".zarray").read_text())
    array = _memory_to_copy(form["shape"], np.dtype(form["dtype"]))
    data, done = memoryview(array.reshape(-1).view(np.uint8)), 0
    with open(_chunk(folder, array.shape), "rb", buffering=0) as file:
        while done < len(data):
            count = file.readinto(data[done:])
            if not count:
                raise EOFError(f"{file.name} ends after {done} of {len(data)} bytes")
            done += count
    return jax.device_put(array, sharding)


def _memory_to_copy(shape: list[int], dtype: np.dtype) -> np.ndarray:
    """Memory that JAX has to copy, because it is not aligned as JAX's own is.

    What it takes without a copy (it does, even with may_alias=False), a step that is given it to
    write over copies then: beside everything else that a step holds.
    """
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 2 * ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT + ALIGNMENT // 2
    return memory[start : start + size].view(dtype).reshape(shape)


def _chunk(folder: Path, shape: tuple[int, ...]) -> Path:
    """The file of the only chunk."""
    return folder / (".".join("0" * len(shape)) or "0")
