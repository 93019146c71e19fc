"""Our training step, compiled, as train.py makes it."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax

from benchmarks.gpu_stages.torch_step import task
from llmc_jax import ops
from llmc_jax.bench_step import train_config
from llmc_jax.models.initialize import initialize
from llmc_jax.training import memory, parallel, placement
from llmc_jax.training.rooms import make_rooms
from llmc_jax.training.step import init_state


class Step(NamedTuple):
    make: Callable  # makes a step and returns its loss, an array nobody has waited for
    planned: int  # bytes that XLA plans for it
    temporary: int  # of these, for what lives within a step


def prepare(spec: str, recompute: int = 0) -> Step:
    """The step of --ops=spec with this --recompute. Raises BadInput with the reason where it cannot
    be had."""
    chosen, _ = ops.select(spec, jax.default_backend())
    todo, mesh = task(spec), parallel.make_mesh()
    cfg = dataclasses.replace(train_config(todo), recompute=recompute)
    update = parallel.map_train_step(chosen, todo.model, cfg, mesh)
    batch = placement.split(tuple(x[None] for x in todo.batch()), mesh, placement.MICRO_BATCHES)
    state = placement.replicate(init_state(initialize(todo.model, todo.seed)), mesh)
    rooms = make_rooms(chosen, todo.model, cfg, mesh)
    compiled = update.lower(state, rooms, *batch).compile(parallel.compile_options(mesh))
    own = [state, rooms]
    del state, rooms  # donated: the only references are to be the step's

    def step():
        own[0], own[1], metrics = compiled(*own, *batch)
        return metrics.loss

    analysis = compiled.memory_analysis()
    return Step(step, memory.planned_bytes(compiled), analysis.temp_size_in_bytes)
