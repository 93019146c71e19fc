"""The one place where a per-device function is mapped over devices.

Batches are split along the axis zero.AXIS; placement.py says how, and where the state lies. One
device is the mesh of size one. Native kernels are opaque to XLA's partitioner, so the mapping is
shard_map, or pmap: each kernel sees its device's part.
"""

import functools
import re
from collections.abc import Callable

import jax
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh
from jax.sharding import PartitionSpec as P

from llmc_jax.config import BadInput, ModelConfig, TrainConfig
from llmc_jax.ops import Ops
from llmc_jax.training.placement import MICRO_BATCHES, REPLICATED, ROWS, join, state_specs
from llmc_jax.training.step import eval_step, train_step
from llmc_jax.training.zero import AXIS

# Outside of what is mapped XLA places arrays, and their types do not say where they are.
BY_XLA = (AxisType.Auto,)
# Platforms where shard_map is not to check what differs from device to device, because the kernels
# of JAX that run there (--ops=attention=pallas) do not say it of their results.
UNCHECKED = ("tpu",)


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


def make_mesh() -> Mesh:
    """All devices of all processes in one line, those of a process side by side."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), (AXIS,), BY_XLA)


def planned_mesh(devices: int) -> AbstractMesh:
    """A mesh of devices that need not be here: functions over it can be traced."""
    return AbstractMesh((devices,), (AXIS,), BY_XLA)


def map_train_step(ops: Ops, model: ModelConfig, cfg: TrainConfig, mesh: Mesh) -> Callable:
    """train_step(state, rooms, inputs, targets) -> (state, rooms, metrics) over the mesh, by
    --mapper; state and rooms are donated."""
    step = functools.partial(train_step, ops=ops, model=model, cfg=cfg)
    if cfg.mapper == "pmap":
        axes = dict(in_axes=(None, None, 1, 1), out_axes=None)
        return jax.pmap(step, AXIS, donate_argnums=(0, 1), devices=mesh.devices.tolist(), **axes)
    state, batch = state_specs(cfg, mesh), _split_over(mesh, MICRO_BATCHES)
    mapped = _map(step, mesh, (state, REPLICATED, batch, batch), (state, REPLICATED, REPLICATED))
    return jax.jit(mapped, donate_argnums=(0, 1), keep_unused=True)


def map_eval_step(ops: Ops, model: ModelConfig, cfg: TrainConfig, mesh: Mesh) -> Callable:
    """eval_step(params, inputs, targets) -> loss over the mesh; inputs and targets (B*D, T)."""
    step = functools.partial(eval_step, ops=ops, model=model, cfg=cfg)
    rows, params = _split_over(mesh, ROWS), state_specs(cfg, mesh).params
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


def _split_over(mesh: Mesh, spec: P) -> P:
    """`spec`, or on one device REPLICATED: then JAX's types know that nothing differs from device
    to device, and the step need reduce nothing."""
    return spec if mesh.size > 1 else REPLICATED


def map_maker(make: Callable, mesh: Mesh) -> Callable:
    """make() -> arrays over the mesh, made on every device."""
    return jax.jit(_map(make, mesh, (), REPLICATED))


def map_greatest(mesh: Mesh) -> Callable:
    """greatest(numbers) -> the greatest of those of all processes, place by place."""

    def over_devices(numbers):
        return lax.pmax(numbers[0], AXIS)

    mapped = jax.jit(jax.shard_map(over_devices, mesh=mesh, in_specs=ROWS, out_specs=REPLICATED))
    return lambda numbers: mapped(join(np.tile(numbers, (len(mesh.local_devices), 1)), mesh, ROWS))


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
