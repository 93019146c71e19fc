"""The training step of train.py as a contestant of bench.py."""

import sys
import time

import jax

from llmc_jax import ffi, ops
from llmc_jax.config import BadInput, ModelConfig, TrainConfig
from llmc_jax.contestant import Task, serve
from llmc_jax.models.initialize import initialize
from llmc_jax.training import parallel, placement
from llmc_jax.training.rooms import make_rooms
from llmc_jax.training.step import init_state


def prepare(task: Task):
    """A function that makes one step and returns its loss."""
    ffi.select_isa(task.cpu_isa)
    chosen, mesh = select_ops(task.ops, task.model), parallel.make_mesh()
    return prepare_step(task, chosen, mesh)[0]


def prepare_step(task: Task, chosen: ops.Ops, mesh):
    """(step, its compiled program, seconds that took); step() makes one and gives its loss.

    Raises BadInput where the devices cannot share the sequences.
    """
    if task.B % mesh.size:
        raise BadInput(
            f"--B={task.B} sequences cannot be split over {mesh.size} devices; use a multiple."
        )
    cfg = train_config(task)
    batch = placement.split(tuple(x[None] for x in task.batch()), mesh, placement.MICRO_BATCHES)
    state = placement.replicate(init_state(initialize(task.model, task.seed)), mesh)
    rooms = make_rooms(chosen, task.model, cfg, mesh)
    began = time.perf_counter()
    update = parallel.map_train_step(chosen, task.model, cfg, mesh)
    compiled = update.lower(state, rooms, *batch).compile(parallel.compile_options(mesh))
    compile_s = time.perf_counter() - began
    ffi.trim_memory()

    def step() -> float:
        nonlocal state, rooms
        state, rooms, metrics = jax.block_until_ready(compiled(state, rooms, *batch))
        return float(metrics.loss)

    return step, compiled, compile_s


def select_ops(spec: str, model: ModelConfig) -> ops.Ops:
    """The ops of --programs=spec for a model. Raises BadInput where it names none; warns where
    kernels that it would take are missing."""
    platform = jax.default_backend()
    try:
        chosen, _ = ops.select(spec, platform, model.HS)
    except BadInput as error:
        raise BadInput(
            f"--programs={spec} is neither pytorch nor autodiff, and as --ops it does not work: "
            f"{error}"
        ) from error
    library = ffi.LIBRARY_OF.get(platform)
    if library and not ffi.available(library) and "jnp" not in spec.split(","):
        print(
            f"warning: --programs={spec} takes jnp for want of kernels: {ffi.status(platform)}.",
            file=sys.stderr,
        )
    return chosen


def train_config(task: Task) -> TrainConfig:
    """The task as train.py's flags would say it."""
    return TrainConfig(
        batch_size=task.B,
        sequence_length=task.T,
        total_batch_size=task.B * task.T,
        max_steps=1_000_000,
        lr_schedule="constant",
        learning_rate=task.learning_rate,
        weight_decay=task.weight_decay,
        dtype=task.dtype,
        recompute=task.recompute,
    )


if __name__ == "__main__":
    serve(prepare)
