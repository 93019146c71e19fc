"""Token shards: llm.c's .bin files (dev/data/data_common.py, llmc/dataloader.h).

A header of 256 little-endian int32, [0] magic, [1] version, [2] number of tokens, then the
tokens as uint16.
"""

import glob
import os
from pathlib import Path

import numpy as np

from llmc_jax.config import BadInput

MAGIC = 20240520
VERSION = 1
HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS


def read_shard(path: str | Path) -> np.ndarray:
    """The tokens of a shard, memory-mapped uint16. Raises BadInput where it is not a shard."""
    try:
        size = os.path.getsize(path)
        header = np.fromfile(path, "<i4", count=HEADER_INTS)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}.") from error
    if len(header) < HEADER_INTS or header[0] != MAGIC or header[1] != VERSION:
        raise BadInput(
            f"{path} is not a token shard (its header is not llm.c's {MAGIC}, version {VERSION}); "
            f"make one with python -m llmc_jax.prepare."
        )
    expected = HEADER_BYTES + 2 * int(header[2])
    if size != expected:
        raise BadInput(
            f"{path} is {'truncated' if size < expected else 'too long'}: its header promises "
            f"{header[2]} tokens ({expected} bytes) and it has {size} bytes; make it again with "
            f"python -m llmc_jax.prepare."
        )
    return np.memmap(path, "<u2", mode="r", offset=HEADER_BYTES, shape=(int(header[2]),))


def write_shard(path: str | Path, tokens: np.ndarray) -> None:
    """Write tokens (each below 65536) as a shard; the file appears whole or not at all."""
    path = Path(path)
    header = np.zeros(HEADER_INTS, "<i4")
    header[:3] = MAGIC, VERSION, len(tokens)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(header.tobytes())
        file.write(np.ascontiguousarray(tokens, "<u2").tobytes())
    os.replace(temporary, path)


def find_shards(flag: str, pattern: str) -> list[str]:
    """The files that match the glob `pattern`, sorted; `flag` is named in errors."""
    if not pattern:
        raise BadInput(
            f"--{flag} is needed: a glob of token shards, for instance those of "
            f"python -m llmc_jax.prepare --source=pystdlib."
        )
    paths = sorted(glob.glob(pattern))
    if not paths:
        raise BadInput(
            f"--{flag}={pattern} matches no file; make shards with python -m llmc_jax.prepare, "
            f"or correct the pattern."
        )
    return paths
