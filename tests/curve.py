"""Loss curves of one model on many meshes in one process, for tests and benchmarks.

    python -m tests.curve '{"model": "tiny", "cases": [{"devices": 2, "zero_stage": 1}]}'

prints a JSON object a case: its losses and gradient norms, what the compiled step holds, and how
long a step took. A case is run twice ("repeat": 1: once), and fails where that gives other numbers.
Its other keys are options of TrainConfig. With "processes" in the
object, PORT and the process's number follow on the command line.
"""

import json
import re
import sys
import time
from collections import Counter

import jax
import numpy as np

from llmc_jax import config, ffi, ops
from llmc_jax.data.order import CounterOrder
from llmc_jax.models.initialize import initialize
from llmc_jax.training import parallel, placement
from llmc_jax.training.rooms import make_rooms
from llmc_jax.training.step import init_state
from tests import tiny

COLLECTIVES = "all-reduce|reduce-scatter|all-gather|all-to-all|collective-permute"
VIRTUAL_DEVICES = 8


def mesh_of(devices: int):
    """A mesh of `devices`, as many of each process."""
    whole = parallel.make_mesh()
    lines = whole.devices.reshape(jax.process_count(), -1)
    return jax.sharding.Mesh(lines[:, : devices // len(lines)].reshape(-1), whole.axis_names)


def batches(cfg, model, mesh, steps: int):
    """The steps' batches: the same sequences whatever the mesh is."""
    T, rows = cfg.sequence_length, cfg.total_batch_size // cfg.sequence_length
    tokens = tiny.tokens(64 * T + 1, V=model.V).astype(np.int32)
    order = CounterOrder(64, shuffle=True, seed=42)
    for step in range(steps):
        starts = order.index(step * rows, rows)[:, None] * T + np.arange(T + 1)
        shaped = tokens[starts].reshape(-1, cfg.batch_size * mesh.size, T + 1)
        shaped = shaped[:, placement.own_rows(mesh, cfg.batch_size * mesh.size)]
        both = np.ascontiguousarray(shaped[..., :-1]), np.ascontiguousarray(shaped[..., 1:])
        yield placement.join(both, mesh, placement.MICRO_BATCHES, mapper=cfg.mapper)


def curve(name: str, case: dict) -> dict:
    """Losses and norms of a case, and what its compiled step holds."""
    case = dict(case)
    devices, steps, spec = case.pop("devices"), case.pop("steps", 20), case.pop("ops", "ffi")
    repeat = case.pop("repeat", 2)
    mesh, model = mesh_of(devices), config.MODELS[name]
    cfg = tiny.config(model=name, max_steps=20, **case)
    chosen, _ = ops.select(spec, "cpu")
    mapped = parallel.map_train_step(chosen, model, cfg, mesh)
    weights, compiled, runs = initialize(model, cfg.seed), None, []
    for _ in range(repeat):
        state = placement.place_state(init_state(weights), mesh, cfg)
        rooms = make_rooms(chosen, model, cfg, mesh)
        if compiled is None:
            batch = next(batches(cfg, model, mesh, steps))
            compiled = mapped.lower(state, rooms, *batch).compile()
        losses, began = [], time.perf_counter()
        for batch in batches(cfg, model, mesh, steps):
            state, rooms, metrics = compiled(state, rooms, *batch)
            losses.append([float(metrics.loss), float(metrics.grad_norm)])
        seconds = time.perf_counter() - began
        runs.append(losses)
    assert runs[0] == runs[-1], "the same run gave other numbers"
    text, plan = compiled.as_text(), compiled.memory_analysis()
    return dict(
        losses=[loss for loss, _ in runs[0]],
        norms=[norm for _, norm in runs[0]],
        collectives=Counter(re.findall(rf"\b({COLLECTIVES})(?:-start)?\(", text)),
        arguments=plan.argument_size_in_bytes,
        temporary=plan.temp_size_in_bytes,
        step_s=seconds / steps,
    )


def main(argv: list[str]) -> None:
    """The cases of argv[0]."""
    task = json.loads(argv[0])
    config.MODELS["tiny"] = tiny.MODEL
    processes = task.get("processes", 1)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", task.get("each", VIRTUAL_DEVICES))
    if processes > 1:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        jax.distributed.initialize(f"127.0.0.1:{argv[1]}", processes, int(argv[2]))
    ffi.require("cpu")
    for case in task["cases"]:
        result = curve(task["model"], case)
        if jax.process_index() == 0:
            print(json.dumps(dict(case=case) | result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
