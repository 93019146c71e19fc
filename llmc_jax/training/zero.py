"""Arrays in parts, one a device: what the stages of ZeRO keep and send.

A part is flat: the numbers of an array in their order, zeros after them until the devices divide
them, cut into as many parts as there are devices. The functions run on each device. They know the
axis that the devices are mapped over, AXIS, and nothing else about them.

ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054) shards across the devices what each would else hold
whole: stage 1 the optimizer's moments, 2 also the accumulated gradients, 3 also the parameters.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from llmc_jax.config import TrainConfig
from llmc_jax.ops.op import after

AXIS = "data"


def stage_in_force(cfg: TrainConfig, devices: int) -> int:
    """--zero_stage; 0 on one device, which has nobody to share with."""
    return cfg.zero_stage if devices > 1 else 0


def part_size(size: int, devices: int) -> int:
    """Numbers in each part of `size` of them."""
    return -(-size // devices)


def _padded(x):
    """x flat, with zeros until the devices divide it."""
    flat = x.reshape(-1)
    return jnp.pad(flat, (0, -flat.size % lax.axis_size(AXIS)))


def own_part(x):
    """This device's part of an array that all devices hold."""
    size = part_size(x.size, lax.axis_size(AXIS))
    return lax.dynamic_slice_in_dim(_padded(x), lax.axis_index(AXIS) * size, size)


def mean(tree, dtype=jnp.float32):
    """The mean of each array over the devices, on all of them; summed in `dtype`.

    Summed and then divided, as in `mean_part`, so that all stages give the same numbers.
    """
    devices = lax.axis_size(AXIS)
    if devices == 1:  # a reduction over one device is a copy to XLA:CPU
        return tree
    total = lax.psum(jax.tree.map(lambda x: x.astype(dtype), tree), AXIS)
    return jax.tree.map(lambda s, x: s.astype(x.dtype) / devices, total, tree)


def mean_part(x, dtype):
    """This device's part of the mean of x over the devices; summed in `dtype`."""
    addends = _padded(x).astype(dtype)
    if _reduce_scatter_is_broken():
        parts = addends.reshape(lax.axis_size(AXIS), -1)  # of other devices here, then of this one
        total = jnp.sum(lax.all_to_all(parts, AXIS, split_axis=0, concat_axis=0), axis=0)
    else:
        total = lax.psum_scatter(addends, AXIS, tiled=True)
    return total.astype(x.dtype) / lax.axis_size(AXIS)


def _reduce_scatter_is_broken() -> bool:
    """Whether a reduce-scatter may give wrong numbers: between processes on CPUs, where Gloo writes
    over what it is still sending if a part is larger than a socket's memory (jax#40830)."""
    return jax.process_count() > 1 and jax.default_backend() == "cpu"


def whole(part, shape: tuple[int, ...], *, to: str = "invarying"):
    """The array of `shape` whose parts the devices have; to: its type, as of lax.all_gather."""
    flat = lax.all_gather(part, AXIS, tiled=True, to=to)
    return lax.slice_in_dim(flat, 0, math.prod(shape)).reshape(shape)


def make_fetch(like) -> Callable:
    """A function fetch(parts, now) -> the tree of arrays shaped like `like`, for models/gpt2.py.

    now: an array that is computed when they are asked for. They are sent once the array of the call
    before is there: while the layer before is computed, and not sooner, or all layers would be in
    memory at once; nor does XLA take what forward had fetched for what backward asks for.
    """
    previous = None

    def fetch(parts, now):
        nonlocal previous
        earlier, previous = previous, now
        if earlier is not None:
            parts = jax.tree.map(lambda part: after(part, earlier), parts)
        return jax.tree.map(lambda part, x: whole(part, x.shape, to="varying"), parts, like)

    return fetch
