"""Token shards: llm.c's .bin files (dev/data/data_common.py, llmc/dataloader.h).

A header of 256 little-endian int32, [0] magic, [1] version, [2] number of tokens, then the
tokens: uint16 of GPT-2's vocabulary, or uint32 of Llama 3's.
"""

import contextlib
import errno
import glob
import os
import resource
from pathlib import Path

import numpy as np

from llmc_jax.config import BadInput
from llmc_jax.files import new_file, refuse_no_file

# (magic, version) -> type of the tokens
KINDS = {(20240520, 1): np.dtype("<u2"), (20240801, 7): np.dtype("<u4")}
HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS


def read_shard(path: str | Path) -> np.ndarray:
    """The tokens of a shard, memory-mapped. Raises BadInput where it is not a shard."""
    refuse_no_file(path)
    try:
        size = os.path.getsize(path)
        header = np.fromfile(path, "<i4", count=HEADER_INTS)
    except OSError as error:
        raise _unreadable(path, error) from error
    dtype = KINDS.get(tuple(header[:2].tolist()))
    if len(header) < HEADER_INTS or dtype is None or header[2] < 0:
        kinds = " or ".join(f"{magic}, version {version}" for magic, version in KINDS)
        raise BadInput(
            f"{path} is not a token shard (its header is not llm.c's {kinds}); "
            f"make one with python -m llmc_jax.prepare."
        )
    expected = HEADER_BYTES + dtype.itemsize * int(header[2])
    if size != expected:
        raise BadInput(
            f"{path} is {'truncated' if size < expected else 'too long'}: its header promises "
            f"{header[2]} tokens ({expected} bytes) and it has {size} bytes; make it again with "
            f"python -m llmc_jax.prepare."
        )
    try:
        return np.memmap(path, dtype, mode="r", offset=HEADER_BYTES, shape=(int(header[2]),))
    except OSError as error:
        raise _unreadable(path, error) from error


def read_shards(flag: str, paths: list[str]) -> list[np.ndarray]:
    """The tokens of each shard, memory-mapped. Raises BadInput where one is no shard, or where they
    are more than this process may have open; `flag` named them."""
    _allow_files(len(paths))
    try:
        return [read_shard(path) for path in paths]
    except BadInput as error:
        if getattr(error.__cause__, "errno", None) != errno.EMFILE:
            raise
        raise BadInput(
            f"--{flag} names {len(paths)} shards, and this process may have "
            f"{resource.getrlimit(resource.RLIMIT_NOFILE)[0]} files open; raise that with "
            f"ulimit -n, or name fewer shards."
        ) from error


def _allow_files(count: int) -> None:
    """Let this process have `count` more files open, as far as the system lets it: a mapped file
    stays open, and usually 1,024 may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = soft + count
    if soft != resource.RLIM_INFINITY:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):  # a system with a lower limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _unreadable(path: str | Path, error: OSError) -> BadInput:
    return BadInput(f"{path} cannot be read: {error.strerror}.")


def write_shard(path: str | Path, tokens: np.ndarray, dtype="uint16") -> None:
    """Write tokens as a shard, uint16 or uint32; the file appears whole or not at all.

    Raises BadInput where it cannot be written.
    """
    ((magic, version),) = (kind for kind, d in KINDS.items() if d == np.dtype(dtype))
    header = np.zeros(HEADER_INTS, "<i4")
    header[:3] = magic, version, len(tokens)
    with new_file(path, overwrite=True) as file:
        file.write(header.tobytes())
        file.write(np.ascontiguousarray(tokens, dtype).data)


def find_shards(flag: str, pattern: str) -> list[str]:
    """The files that match `pattern` (globs separated by commas), those of each glob sorted.

    Raises BadInput, which names `flag`, where a glob matches nothing.
    """
    if not pattern:
        raise BadInput(
            f"--{flag} is needed: a glob of token shards, for instance those of "
            f"python -m llmc_jax.prepare --source=pystdlib."
        )
    return [path for part in pattern.split(",") for path in _matches(flag, part)]


def _matches(flag: str, pattern: str) -> list[str]:
    paths = sorted(glob.glob(pattern))
    if not paths:
        raise BadInput(
            f"--{flag}={pattern} matches no file; make shards with python -m llmc_jax.prepare, "
            f"or correct the pattern."
        )
    return paths
