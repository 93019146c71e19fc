"""The one place where a per-device function is mapped over devices.

State is replicated and batches are split along the axis step.AXIS. One device is the mesh of
size one. Native kernels are opaque to XLA's partitioner, so the mapping is shard_map: each
kernel sees its device's shard.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from llmc_jax.training.step import AXIS

REPLICATED = P()
ROWS = P(AXIS)  # (B*D, T): each device has B sequences
MICRO_BATCHES = P(None, AXIS)  # (A, B*D, T)


# Platforms where shard_map is not to check what differs from device to device, because the kernels
# of JAX that run there (--ops=attention=pallas) do not say it of their results.
UNCHECKED = ("tpu",)


def make_mesh() -> Mesh:
    """All devices of this process in one line."""
    return Mesh(np.array(jax.devices()), (AXIS,))


def map_train_step(step: Callable, mesh: Mesh) -> Callable:
    """step(state, memory, inputs, targets) -> (state, memory, metrics) over the mesh; state and
    memory are donated, and the gradients are written over the memory because they are a result."""
    batch = _split_over(mesh, MICRO_BATCHES)
    mapped = _map(step, mesh, (REPLICATED, REPLICATED, batch, batch), (REPLICATED,) * 3)
    return jax.jit(mapped, donate_argnums=(0, 1), keep_unused=True)


def map_eval_step(step: Callable, mesh: Mesh) -> Callable:
    """step(params, inputs, targets) -> loss over the mesh; inputs and targets (B*D, T)."""
    rows = _split_over(mesh, ROWS)
    return jax.jit(_map(step, mesh, (REPLICATED, rows, rows), REPLICATED))


def map_row_step(step: Callable, mesh: Mesh) -> Callable:
    """step(params, inputs, targets) -> arrays with a row for each of theirs, over the mesh."""
    rows = _split_over(mesh, ROWS)
    return jax.jit(_map(step, mesh, (REPLICATED, rows, rows), rows))


def _map(step: Callable, mesh: Mesh, in_specs, out_specs) -> Callable:
    checked = mesh.devices.flat[0].platform not in UNCHECKED
    specs = dict(in_specs=in_specs, out_specs=out_specs)
    return jax.shard_map(step, mesh=mesh, check_vma=checked, **specs)


def _split_over(mesh: Mesh, spec: P) -> P:
    """`spec`, or on one device REPLICATED: then JAX's types know that nothing differs from device
    to device, and the step need reduce nothing."""
    return spec if mesh.size > 1 else REPLICATED


def planned_bytes(compiled) -> int:
    """Memory that XLA plans for a compiled step: arguments, results that are not written over
    them, and everything in between (its peak_memory_in_bytes leaves that out on the CPU)."""
    memory = compiled.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + results + memory.temp_size_in_bytes


def replicate(tree, mesh: Mesh):
    """`tree` on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, REPLICATED))


def replicated_like(tree, mesh: Mesh):
    """Shapes and dtypes of `tree` with the placement that `replicate` gives."""
    everywhere = NamedSharding(mesh, REPLICATED)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), tree)


def split(batch, mesh: Mesh, spec: P):
    """NumPy arrays on the mesh, split as `spec` (ROWS or MICRO_BATCHES) says."""
    return jax.device_put(batch, NamedSharding(mesh, spec))
