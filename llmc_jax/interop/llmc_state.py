"""llm.c's optimizer states, state_<step>_<rank>.bin: to continue its runs here.

Reference: llm.c save_state and load_state in train_gpt2.cu, and its zero.cuh: with ZeRO stage 1
each rank holds its slice of every tensor of every layer.
"""

import os
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from llmc_jax.config import BadInput, ModelConfig, not_saved
from llmc_jax.interop.llmc import (
    HEADER_BYTES,
    in_file_order,
    read_header,
    read_model,
    split_tensors,
)
from llmc_jax.models import gpt2
from llmc_jax.models.gpt2 import Block, Params

MAGIC, VERSION = 20240527, 1
DONE = "DONE_" + "[0-9]" * 8  # the last file of a checkpoint
MT19937_BYTES = 2520  # struct mt19937_state


class LoaderPlace(NamedTuple):
    """Where llm.c's loader was: in which shard of the epoch, of which it had read so many samples.

    It opens the next shard only to read from it.
    """

    shard: int
    sample: int


class LlmcRun(NamedTuple):
    """A checkpoint of llm.c, the files of all its ranks merged."""

    model: ModelConfig
    params: Params  # master weights (float32) where it has them
    dtype: str  # of its activations: float32 or bfloat16
    m: Params
    v: Params
    step: int
    place: LoaderPlace  # of rank 0
    shuffled: bool
    ranks: int


class _Rank(NamedTuple):
    tensors: list[np.ndarray]  # m, v and perhaps master, one after another
    step: int
    place: LoaderPlace
    shuffled: bool


def is_llmc_run(folder: Path) -> bool:
    """Whether `folder` is an output directory of llm.c with a complete checkpoint."""
    return any(folder.glob(DONE))


def read_run(folder: str | Path, step: int = -1) -> LlmcRun:
    """The checkpoint of `step` (-1: the newest complete one) in llm.c's output directory.

    Raises BadInput where files are missing or do not fit together.
    """
    folder = Path(folder)
    done = sorted(int(path.name.removeprefix("DONE_")) for path in folder.glob(DONE))
    step = done[-1] if step == -1 and done else step
    if step not in done:
        raise not_saved("step", step, folder, done)
    model, weights = read_model(folder / f"model_{step:08d}.bin")
    first = folder / f"state_{step:08d}_00000.bin"
    header = read_header(first, MAGIC, (VERSION,), "an optimizer state of llm.c")
    if (count := int(header[2])) < 1:
        raise BadInput(f"{first} says that {count} processes wrote it; copy it again.")
    ranks = [
        _read_rank(folder / f"state_{step:08d}_{rank:05d}.bin", model, rank, count)
        for rank in range(count)
    ]
    merged = [_merge(parts, model) for parts in zip(*(r.tensors for r in ranks), strict=True)]
    params = merged[2] if len(merged) == 3 else weights
    dtype = "bfloat16" if weights.wte.dtype.itemsize == 2 else "float32"
    return LlmcRun(
        model, params, dtype, *merged[:2], ranks[0].step, ranks[0].place, ranks[0].shuffled, count
    )


def _read_rank(path: Path, model: ModelConfig, rank: int, ranks: int) -> _Rank:
    """One rank's file, checked against what the others said."""
    header = read_header(path, MAGIC, (VERSION,), "an optimizer state of llm.c")
    if (header[2], header[3]) != (ranks, rank):
        raise BadInput(
            f"{path} is of rank {header[3]} of {header[2]}, expected rank {rank} of {ranks}; "
            f"copy the files of one run."
        )
    shuffled = bool(header[5])
    shard, sample = (int(n) for n in header[30:34].view("<u8"))
    arrays = 3 if header[4] else 2
    for size in (model.num_parameters, model.num_parameters // ranks):
        end = HEADER_BYTES + arrays * 4 * size
        if end + _tail_bytes(path, end, shuffled) == os.path.getsize(path):
            numbers = np.memmap(path, "<f4", mode="r", offset=HEADER_BYTES, shape=(arrays * size,))
            return _Rank(
                np.split(numbers, arrays), int(header[10]), LoaderPlace(shard, sample), shuffled
            )
    raise BadInput(
        f"{path} is truncated or not of the model beside it ({model.num_parameters} parameters, "
        f"{ranks} ranks); copy it again."
    )


def _tail_bytes(path: Path, begin: int, shuffled: bool) -> int:
    """Size of what follows the tensors, if they end at `begin`: the loader's permutations."""
    if not shuffled:
        return 0
    with open(path, "rb") as file:

        def size_at(place: int) -> int:
            file.seek(place)
            return int.from_bytes(file.read(8), "little")

        end = begin + 8 + 4 * size_at(begin)
        if end > os.path.getsize(path):  # it is no size: the tensors do not end at `begin`
            return end - begin
        return end - begin + 8 + 4 * size_at(end) + MT19937_BYTES


def _merge(parts: list[np.ndarray], model: ModelConfig) -> Params:
    """One tree of parameters from the ranks' parts: all the same, or slices of each tensor."""
    if parts[0].size == model.num_parameters:
        return split_tensors(parts[0], model)
    shapes = gpt2.shapes(model)
    if any(tensor.size % len(parts) for tensor in jax.tree.leaves(shapes)):
        raise BadInput(f"{len(parts)} optimizer states cannot be slices of a model {model}.")
    tensors, begin = [], 0
    for tensor in in_file_order(shapes):
        size = tensor.size // len(parts)
        slices = [part[begin : begin + size] for part in parts]
        tensors.append(np.concatenate(slices).reshape(tensor.shape))
        begin += size
    wte, wpe, *middle, lnfw, lnfb = tensors
    blocks = tuple(Block(*middle[layer :: model.L]) for layer in range(model.L))
    return Params(wte, wpe, blocks, lnfw, lnfb)
