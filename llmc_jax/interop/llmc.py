"""llm.c's model and debug-state files: a header of 256 int32, then tensors, all little-endian.

The 16 tensors come in the order of gpt2.Params, those of a layer stacked over the layers; wte has
its padded rows. Reference: llm.c train_gpt2.py (write_model, write_state) and train_gpt2.cu
(gpt2_build_from_checkpoint).
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from llmc_jax.config import BadInput, ModelConfig, refuse_impossible
from llmc_jax.files import new_file, refuse_no_file
from llmc_jax.models import gpt2
from llmc_jax.models.gpt2 import Block, Params

HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS

MODEL_MAGIC = 20240326
MODEL_DTYPES = {3: np.dtype("<f4"), 5: np.dtype(ml_dtypes.bfloat16)}  # by version
DEBUG_MAGIC, DEBUG_VERSION = 20240327, 2


class DebugState(NamedTuple):
    """One batch with everything llm.c's test_gpt2 compares."""

    x: np.ndarray  # (B, T) int32, inputs
    y: np.ndarray  # (B, T) int32, targets
    logits: np.ndarray  # (B, T, V) float32
    loss: float
    grads: Params  # float32


def read_model(path: str | Path) -> tuple[ModelConfig, Params]:
    """The model in a file of llm.c's train_gpt2, fp32 (version 3) or bf16 (version 5).

    The parameters are views of the memory-mapped file: nothing is read until it is used. Raises
    BadInput where the file is not what its header says.
    """
    header = read_header(path, MODEL_MAGIC, tuple(MODEL_DTYPES), "a model of llm.c")
    maxT, V, L, NH, C, Vp = (int(n) for n in header[2:8])
    cfg = ModelConfig(L=L, NH=NH, C=C, maxT=maxT, V=V, Vp=Vp)
    refuse_impossible(cfg, path)
    dtype = MODEL_DTYPES[int(header[1])]
    check_size(path, HEADER_BYTES + cfg.num_parameters * dtype.itemsize)
    numbers = np.memmap(path, dtype, mode="r", offset=HEADER_BYTES)
    return cfg, split_tensors(numbers, cfg)


def write_model(
    path: str | Path, cfg: ModelConfig, params: Params, *, dtype="float32", overwrite: bool = False
) -> None:
    """Write a model file for llm.c; dtype: float32 or bfloat16 (rounded to nearest)."""
    (version,) = (v for v, d in MODEL_DTYPES.items() if d == np.dtype(dtype))
    header = [MODEL_MAGIC, version, cfg.maxT, cfg.V, cfg.L, cfg.NH, cfg.C, cfg.Vp]
    with new_file(path, overwrite=overwrite) as file:
        write_header(file, header)
        write_tensors(file, params, MODEL_DTYPES[version])


def read_debug_state(path: str | Path, cfg: ModelConfig) -> DebugState:
    """The debug state written for a model of the sizes `cfg`."""
    header = read_header(path, DEBUG_MAGIC, (DEBUG_VERSION,), "a debug state of llm.c")
    B, T = (int(n) for n in header[2:4])
    sizes = (B * T, B * T, B * T * cfg.V, 1, cfg.num_parameters)
    check_size(path, HEADER_BYTES + 4 * sum(sizes))
    body = np.memmap(path, "<i4", mode="r", offset=HEADER_BYTES)
    x, y, logits, loss, grads = np.split(body, np.cumsum(sizes)[:-1])
    return DebugState(
        x.reshape(B, T),
        y.reshape(B, T),
        logits.view("<f4").reshape(B, T, cfg.V),
        float(loss.view("<f4")[0]),
        split_tensors(grads.view("<f4"), cfg),
    )


def write_debug_state(path: str | Path, state: DebugState, *, overwrite: bool = False) -> None:
    """Write a debug state as llm.c's train_gpt2.py does."""
    with new_file(path, overwrite=overwrite) as file:
        write_header(file, [DEBUG_MAGIC, DEBUG_VERSION, *state.x.shape])
        for ints in (state.x, state.y):
            file.write(np.ascontiguousarray(ints, "<i4"))
        file.write(np.ascontiguousarray(state.logits, "<f4"))
        file.write(np.float32(state.loss).tobytes())
        write_tensors(file, state.grads, np.dtype("<f4"))


def read_header(path: str | Path, magic: int, versions: tuple[int, ...], what: str) -> np.ndarray:
    """The 256 int32 of a file. Raises BadInput where they are not those of `what`."""
    refuse_no_file(path)
    try:
        header = np.fromfile(path, "<i4", count=HEADER_INTS)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}.") from error
    if len(header) < HEADER_INTS or header[0] != magic:
        raise BadInput(f"{path} is not {what}: it does not begin with {magic}.")
    if header[1] not in versions:
        raise BadInput(
            f"{path} is {what} of version {header[1]}; versions "
            f"{' and '.join(map(str, versions))} can be read."
        )
    return header


def write_header(file: BinaryIO, numbers: list[int]) -> None:
    """Write the header that begins with `numbers`; the rest is 0."""
    header = np.zeros(HEADER_INTS, "<i4")
    header[: len(numbers)] = numbers
    file.write(header.tobytes())


def check_size(path: str | Path, expected: int) -> None:
    """Raises BadInput where the file has not the size that its header promises."""
    size = os.path.getsize(path)
    if size != expected:
        raise BadInput(
            f"{path} is {'truncated' if size < expected else 'too long'}: its header promises "
            f"{expected} bytes and it has {size}; copy or export it again."
        )


def split_tensors(numbers: np.ndarray, cfg: ModelConfig) -> Params:
    """The parameters as views of `numbers`, which holds them one after another in file order."""
    shapes = _shapes(cfg)
    parts = np.split(numbers, np.cumsum([math.prod(shape) for shape in shapes])[:-1])
    wte, wpe, *stacked, lnfw, lnfb = map(np.reshape, parts, shapes)
    blocks = tuple(Block(*(tensor[layer] for tensor in stacked)) for layer in range(cfg.L))
    return Params(wte, wpe, blocks, lnfw, lnfb)


def write_tensors(file: BinaryIO, params: Params, dtype: np.dtype) -> None:
    """Write all parameters in file order, one tensor of one layer after another."""
    for tensor in in_file_order(params):
        numbers = np.ascontiguousarray(np.asarray(tensor).astype(dtype, copy=False))
        file.write(numbers.view(np.uint8))


def in_file_order(params: Params) -> Iterator:
    """The tensors of each layer, in the order in which they lie in a file."""
    yield from (params.wte, params.wpe)
    for name in Block._fields:
        yield from (getattr(block, name) for block in params.block)
    yield from (params.lnfw, params.lnfb)


def _shapes(cfg: ModelConfig) -> list[tuple[int, ...]]:
    """Shapes of the 16 tensors, with the layers in front."""
    shapes = gpt2.shapes(cfg)
    stacked = [(cfg.L, *tensor.shape) for tensor in shapes.block[0]]
    return [shapes.wte.shape, shapes.wpe.shape, *stacked, shapes.lnfw.shape, shapes.lnfb.shape]
