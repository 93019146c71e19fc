"""How arrays lie on the mesh: put there from the host, described as shapes, and taken back whole.

Parameters and moments are on every device, or by --zero_stage in parts (zero.py): flat, padded and
split. `*_like` give shapes and dtypes with the placement that arrays will have.
"""

import functools
import math
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from llmc_jax.config import TrainConfig
from llmc_jax.models.gpt2 import Params
from llmc_jax.training.step import TrainState
from llmc_jax.training.zero import AXIS, part_size, stage_in_force

REPLICATED = P()
ROWS = P(AXIS)  # (B*D, T): each device has B sequences
MICRO_BATCHES = P(None, AXIS)  # (A, B*D, T)
PARTS = P(AXIS)  # of an array of the state, flat


def replicate(tree, mesh: Mesh):
    """`tree` on every device of the mesh."""
    return split(tree, mesh, REPLICATED)


def replicated_like(tree, mesh: Mesh):
    """Shapes and dtypes of `tree` with the placement that `replicate` gives."""
    return _like(tree, NamedSharding(mesh, REPLICATED))


def split(tree, mesh: Mesh, spec: P):
    """Arrays that every process holds, on the mesh, split as `spec` says."""
    sharding = NamedSharding(mesh, spec)
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def place(x):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(place, tree)


def host_like(tree):
    """Shapes and dtypes of `tree`, placed in this process's own memory."""
    return _like(tree, SingleDeviceSharding(jax.local_devices(backend="cpu")[0]))


def _like(tree, sharding):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


# Batches.


def own_rows(mesh: Mesh, rows: int) -> slice:
    """Which of the `rows` of a micro-batch the devices of this process compute."""
    of_device = rows // mesh.size
    places = [i for i, d in enumerate(mesh.devices) if d.process_index == jax.process_index()]
    return slice(places[0] * of_device, (places[-1] + 1) * of_device)


def join(batch, mesh: Mesh, spec: P, *, mapper: str = "shard_map"):
    """Arrays of which each process holds its `own_rows`, on the mesh, split as `spec` says.

    mapper: "pmap" wants micro-batches with an axis of devices: (A, D, B, T).
    """
    if mapper == "pmap":
        batch = jax.tree.map(lambda x: x.reshape(x.shape[0], mesh.size, -1, x.shape[-1]), batch)
    sharding = NamedSharding(mesh, spec)
    if sharding.is_fully_addressable:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def micro_batches_like(shape: tuple[int, int, int], mesh: Mesh, *, mapper: str = "shard_map"):
    """Shape, dtype and placement of what `join` makes of the tokens (A, B*D, T) of a step."""
    A, rows, T = shape
    if mapper == "pmap":
        shape = (A, mesh.size, rows // mesh.size, T)
    return jax.ShapeDtypeStruct(shape, np.int32, sharding=NamedSharding(mesh, MICRO_BATCHES))


# The state, and parameters.


def state_specs(cfg: TrainConfig, mesh: Mesh) -> TrainState:
    """How each part of the state lies on the mesh."""
    stage = stage_in_force(cfg, mesh.size)
    moments = PARTS if stage >= 1 else REPLICATED
    params = PARTS if stage >= 3 else REPLICATED
    return TrainState(params, moments, moments, REPLICATED, REPLICATED, REPLICATED)


def place_state(state: TrainState, mesh: Mesh, cfg: TrainConfig) -> TrainState:
    """A state whose arrays have their natural shapes, on the mesh as the step takes it."""
    place = functools.partial(_place, mesh=mesh)
    return TrainState(*map(place, state, state_specs(cfg, mesh)))


def place_params(params, mesh: Mesh, cfg: TrainConfig):
    """Parameters, or one, in their natural shapes on the mesh as the step takes them."""
    return _place(params, state_specs(cfg, mesh).params, mesh)


def _place(tree, spec: P, mesh: Mesh):
    if spec == PARTS:
        tree = jax.tree.map(lambda x: _padded(np.asarray(x), mesh.size), tree)
    return split(tree, mesh, spec)


def _padded(x: np.ndarray, devices: int) -> np.ndarray:
    """x flat, with zeros until the devices divide it."""
    flat = x.reshape(-1)
    return np.pad(flat, (0, part_size(flat.size, devices) * devices - flat.size))


def state_like(like: TrainState, mesh: Mesh, cfg: TrainConfig) -> TrainState:
    """Shapes, dtypes and placement that `place_state` gives to a state of the shapes `like`."""

    def flat(x):
        return jax.ShapeDtypeStruct((part_size(x.size, mesh.size) * mesh.size,), x.dtype)

    def placed(tree, spec):
        tree = jax.tree.map(flat, tree) if spec == PARTS else tree
        return _like(tree, NamedSharding(mesh, spec))

    return TrainState(*map(placed, like, state_specs(cfg, mesh)))


def whole(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """An array of the state as it is by nature, on every device.

    Where it lies in parts on several processes, all of them must ask for it.
    """
    if x.shape == shape and x.is_fully_replicated:
        return x
    return _joined(shape, NamedSharding(x.sharding.mesh, REPLICATED))(x)


@functools.cache
def _joined(shape: tuple[int, ...], everywhere: NamedSharding) -> Callable:
    """A function of an array in parts that gives it with `shape`; compiled once for each shape."""
    size = math.prod(shape)
    return jax.jit(lambda x: x[:size].reshape(shape), out_shardings=everywhere)


def whole_params(params: Params, like: Params) -> Params:
    """Parameters with the shapes of `like` on every device, however they lie on the mesh."""
    return jax.tree.map(lambda x, shape: jax.block_until_ready(whole(x, shape.shape)), params, like)


def own_copy(tree):
    """Arrays that are on every device, as arrays of one device of this process: what is computed
    with them is of this process alone."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def to_host(tree):
    """NumPy arrays of `tree`; of what lies on several processes too, if all of them ask for it."""

    def of_all(x):
        if x.is_fully_addressable or x.is_fully_replicated:
            return x
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.device_get(jax.tree.map(of_all, tree))
