"""The one place where a per-device function is mapped over devices.

Batches are split along the axis zero.AXIS; the state is on every device, or by --zero_stage in
parts (zero.py). One device is the mesh of size one. Native kernels are opaque to XLA's
partitioner, so the mapping is shard_map, or pmap: each kernel sees its device's part.
"""

import functools
import math
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from llmc_jax.config import BadInput, ModelConfig, TrainConfig
from llmc_jax.models.gpt2 import Params
from llmc_jax.ops import Ops
from llmc_jax.training.step import TrainState, eval_step, train_step
from llmc_jax.training.zero import AXIS, part_size, stage_in_force

REPLICATED = P()
ROWS = P(AXIS)  # (B*D, T): each device has B sequences
MICRO_BATCHES = P(None, AXIS)  # (A, B*D, T)
PARTS = P(AXIS)  # of an array of the state, flat
# Outside of what is mapped XLA places arrays, and their types do not say where they are.
BY_XLA = (AxisType.Auto,)


def select_devices(name: str) -> int:
    """Use the devices that --devices names; before JAX is asked for one. How many they are, 0 where
    it names none. Raises BadInput."""
    if not name:
        return 0
    match = re.fullmatch(r"cpu:([1-9]\d{0,3})", name)
    if not match:
        raise BadInput(
            f"--devices={name} must be cpu:N, for N virtual devices (9999 at most), or be left out."
        )
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", int(match[1]))
    return int(match[1])


# Platforms where shard_map is not to check what differs from device to device, because the kernels
# of JAX that run there (--ops=attention=pallas) do not say it of their results.
UNCHECKED = ("tpu",)


def make_mesh() -> Mesh:
    """All devices of all processes in one line, those of a process side by side."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), (AXIS,), BY_XLA)


def planned_mesh(devices: int) -> AbstractMesh:
    """A mesh of devices that need not be here: functions over it can be traced."""
    return AbstractMesh((devices,), (AXIS,), BY_XLA)


# Functions over the mesh.


def map_train_step(ops: Ops, model: ModelConfig, cfg: TrainConfig, mesh: Mesh) -> Callable:
    """train_step(state, rooms, inputs, targets) -> (state, rooms, metrics) over the mesh, by
    --mapper; state and rooms are donated."""
    step = functools.partial(train_step, ops=ops, model=model, cfg=cfg)
    if cfg.mapper == "pmap":
        axes = dict(in_axes=(None, None, 0, 0), out_axes=None)
        return jax.pmap(step, AXIS, donate_argnums=(0, 1), devices=mesh.devices.tolist(), **axes)
    state, batch = _state_specs(stage_in_force(cfg, mesh.size)), _split_over(mesh, MICRO_BATCHES)
    mapped = _map(step, mesh, (state, REPLICATED, batch, batch), (state, REPLICATED, REPLICATED))
    return jax.jit(mapped, donate_argnums=(0, 1), keep_unused=True)


def map_eval_step(ops: Ops, model: ModelConfig, cfg: TrainConfig, mesh: Mesh) -> Callable:
    """eval_step(params, inputs, targets) -> loss over the mesh; inputs and targets (B*D, T)."""
    step = functools.partial(eval_step, ops=ops, model=model, cfg=cfg)
    rows, params = _split_over(mesh, ROWS), _state_specs(stage_in_force(cfg, mesh.size)).params
    return jax.jit(_map(step, mesh, (params, rows, rows), REPLICATED))


def map_row_step(step: Callable, mesh: Mesh) -> Callable:
    """step(params, inputs, targets) -> arrays with a row for each of theirs, over the mesh."""
    rows = _split_over(mesh, ROWS)
    return jax.jit(_map(step, mesh, (REPLICATED, rows, rows), rows))


def _map(step: Callable, mesh: Mesh, in_specs, out_specs) -> Callable:
    # What is only traced, for whatever platform, is not checked either.
    checked = isinstance(mesh, Mesh) and mesh.devices.flat[0].platform not in UNCHECKED
    specs = dict(in_specs=in_specs, out_specs=out_specs)
    return jax.shard_map(step, mesh=mesh, check_vma=checked, **specs)


def map_maker(make: Callable, mesh: Mesh) -> Callable:
    """make() -> arrays over the mesh, made on every device."""
    return jax.jit(_map(make, mesh, (), REPLICATED))


def map_greatest(mesh: Mesh) -> Callable:
    """greatest(numbers) -> the greatest of those of all processes, place by place."""

    def over_devices(numbers):
        return lax.pmax(numbers[0], AXIS)

    mapped = jax.jit(jax.shard_map(over_devices, mesh=mesh, in_specs=ROWS, out_specs=REPLICATED))
    return lambda numbers: mapped(join(np.tile(numbers, (len(mesh.local_devices), 1)), mesh, ROWS))


def _split_over(mesh: Mesh, spec: P) -> P:
    """`spec`, or on one device REPLICATED: then JAX's types know that nothing differs from device
    to device, and the step need reduce nothing."""
    return spec if mesh.size > 1 else REPLICATED


def _state_specs(stage: int) -> TrainState:
    """How each part of the state lies on the mesh."""
    moments = PARTS if stage >= 1 else REPLICATED
    params = PARTS if stage >= 3 else REPLICATED
    return TrainState(params, moments, moments, REPLICATED, REPLICATED, REPLICATED)


def compile_options(mesh: Mesh) -> dict[str, bool]:
    """What XLA is told of GPUs.

    To leave products to cuBLAS, which adds the bias as it writes a product: Triton's kernels leave
    that to a pass of its own. And on several, to send gradients while backward goes on. (Compiled
    for GPUs that are not there it does not all the same: benchmarks/results/gpu_plan.md.)
    """
    if mesh.devices.flat[0].platform != "gpu":
        return {}
    options = {"xla_gpu_enable_triton_gemm": False}
    return options | ({"xla_gpu_enable_latency_hiding_scheduler": True} if mesh.size > 1 else {})


def of_one_device(traced):
    """The jaxpr that each device runs, of a `map_train_step` traced. In front of the step's
    arguments it may take constants."""
    (mapped,) = traced.jaxpr.jaxpr.eqns
    return mapped.params["jaxpr"]


def planned_bytes(compiled) -> int:
    """Memory that XLA plans for a compiled step: arguments, results that are not written over
    them, and everything in between (its peak_memory_in_bytes leaves that out on the CPU)."""
    memory = compiled.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + results + memory.temp_size_in_bytes


# Arrays on the mesh.


def replicate(tree, mesh: Mesh):
    """`tree` on every device of the mesh."""
    return split(tree, mesh, REPLICATED)


def replicated_like(tree, mesh: Mesh):
    """Shapes and dtypes of `tree` with the placement that `replicate` gives."""
    return split_like(tree, mesh, REPLICATED)


def split_like(tree, mesh: Mesh, spec: P):
    """Shapes and dtypes of `tree` with the placement that `split` gives."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def split(tree, mesh: Mesh, spec: P):
    """Arrays that every process holds, on the mesh, split as `spec` says."""
    sharding = NamedSharding(mesh, spec)
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def place(x):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(place, tree)


def own_rows(mesh: Mesh, rows: int) -> slice:
    """Which of the `rows` of a micro-batch the devices of this process compute."""
    of_device = rows // mesh.size
    places = [i for i, d in enumerate(mesh.devices) if d.process_index == jax.process_index()]
    return slice(places[0] * of_device, (places[-1] + 1) * of_device)


def join(batch, mesh: Mesh, spec: P, *, mapper: str = "shard_map"):
    """Arrays of which each process holds its `own_rows`, on the mesh, split as `spec` says.

    mapper: "pmap" wants micro-batches with an axis of devices in front: (D, A, B, T).
    """
    if mapper == "pmap":

        def by_device(x):
            return np.moveaxis(x.reshape(x.shape[0], mesh.size, -1, x.shape[-1]), 1, 0)

        batch, spec = jax.tree.map(by_device, batch), P(AXIS)
    sharding = NamedSharding(mesh, spec)
    if sharding.is_fully_addressable:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def micro_batches_like(shape: tuple[int, int, int], mesh: Mesh, *, mapper: str = "shard_map"):
    """Shape, dtype and placement of what `join` makes of the tokens (A, B*D, T) of a step."""
    A, rows, T = shape
    spec = MICRO_BATCHES
    if mapper == "pmap":
        shape, spec = (mesh.size, A, rows // mesh.size, T), P(AXIS)
    return jax.ShapeDtypeStruct(shape, np.int32, sharding=NamedSharding(mesh, spec))


def state_like(like: TrainState, mesh: Mesh, stage: int) -> TrainState:
    """Shapes, dtypes and placement of a state that `place_state` has placed.

    like: the state with its natural shapes.
    """

    def placed(tree, spec):
        if spec == PARTS:
            tree = jax.tree.map(lambda x: _part_like(x, mesh.size), tree)
        return split_like(tree, mesh, spec)

    return TrainState(*map(placed, like, _state_specs(stage)))


def _part_like(x, devices: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((part_size(x.size, devices) * devices,), x.dtype)


def on_host(like):
    """Shapes and dtypes of `like`, placed in this process's own memory."""
    host = SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=host), like)


def place_state(state: TrainState, mesh: Mesh, stage: int) -> TrainState:
    """A state whose arrays have their natural shapes, on the mesh as the step takes it."""
    return TrainState(
        *(_place(x, mesh, spec) for x, spec in zip(state, _state_specs(stage), strict=True))
    )


def place_params(params, mesh: Mesh, stage: int):
    """Parameters, or one, in their natural shapes on the mesh as the step takes them."""
    return _place(params, mesh, _state_specs(stage).params)


def _place(tree, mesh: Mesh, spec: P):
    if spec == PARTS:
        tree = jax.tree.map(lambda x: _padded(np.asarray(x), mesh.size), tree)
    return split(tree, mesh, spec)


def maker_of_zeros(like) -> Callable:
    """A compiled function that gives arrays of zeros of the shapes, dtypes and placement of `like`,
    made where they will be."""
    leaves, structure = jax.tree.flatten(like)
    make = _compiled_zeros(tuple(leaves))
    return lambda: structure.unflatten(make())


@functools.cache
def _compiled_zeros(like: tuple[jax.ShapeDtypeStruct, ...]) -> Callable:
    """One program for all arrays: it takes less long than one each."""
    shardings = [x.sharding for x in like]
    make = jax.jit(lambda: [jnp.zeros(x.shape, x.dtype) for x in like], out_shardings=shardings)
    return make.lower().compile()


def _padded(x: np.ndarray, devices: int) -> np.ndarray:
    """x flat, with zeros until the devices divide it."""
    flat = x.reshape(-1)
    return np.pad(flat, (0, part_size(flat.size, devices) * devices - flat.size))


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
