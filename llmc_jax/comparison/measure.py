"""One measurement: the training step as train.py makes it, on the devices of this process."""

import os
import platform as python_platform
import statistics
import time

import jax

from llmc_jax import devices, ffi, machine, ops
from llmc_jax.bench_step import prepare_step, train_config
from llmc_jax.comparison import ceilings, energy
from llmc_jax.comparison.breakdown import OTHER, joined, needed, traced, with_factors
from llmc_jax.contestant import Task, peak_bytes, reset_peak
from llmc_jax.models import gpt2
from llmc_jax.ops.op import Cost
from llmc_jax.training import memory, parallel
from llmc_jax.training.step import in_factors

WARMUP = 2  # steps
TRACED = 2  # steps


def measure(task: Task, *, steps: int) -> dict:
    """The record of a measurement (record.py says what is in it). Raises BadInput."""
    ffi.select_isa(task.cpu_isa)
    platform, mesh = jax.default_backend(), parallel.make_mesh()
    model = task.model
    chosen, names = ops.select(task.ops, platform, model.HS)
    step, compiled, compile_s = prepare_step(task, chosen, mesh)
    timed = time_steps(step, steps, platform)
    roofs = roof(chosen, task.dtype, platform)
    by_pass = traced(step, TRACED, compiled.as_text(), mesh.size)
    needs = joined(needed_by(chosen, task, mesh.size), by_pass)
    return dict(
        platform=platform,
        device=device_name(),
        devices=mesh.size,
        model=dict(L=model.L, NH=model.NH, C=model.C, parameters=model.num_parameters),
        B=task.B,
        T=task.T,
        dtype=task.dtype,
        recompute=task.recompute,
        ops=names,
        cpu_isa=ffi.active_isa() if "ffi" in names.values() else "",
        compile_s=round(compile_s, 2),
        **timed,
        **used(task, statistics.median(timed["step_ms"]) / 1000, mesh.size, roofs),
        planned_bytes=memory.planned_bytes(compiled),
        ceilings=roofs,
        passes={
            name: dict(flop=cost.flop, bytes=cost.bytes, ms=by_pass.get(name))
            for name, cost in needs.items()
        },
        other_ms=by_pass.get(OTHER),
        commit=machine.commit() or "unknown",
        versions={name: machine.version(name) for name in ("jax", "jaxlib")}
        | dict(python=python_platform.python_version()),
    )


def needed_by(chosen: ops.Ops, task: Task, count: int) -> dict[str, Cost]:
    """What each pass of the step needs at least on one of `count` devices."""
    rows = task.B // count
    needs = needed(task.model, rows, task.T, task.dtype)
    left = in_factors(train_config(task), task.model, micro_batches=1, devices=count)
    if left and chosen.matmul.backward_in_factors:
        return with_factors(needs, task.model, rows * task.T, task.dtype)
    return needs


def time_steps(step, steps: int, platform: str) -> dict:
    """Milliseconds of each step, peak memory and energy while they were made."""
    for _ in range(WARMUP):
        step()
    reset_peak()  # that of compiling is not a step's
    times = []
    with energy.measured(platform) as spent:
        for _ in range(steps):
            began = time.perf_counter()
            step()
            times.append(time.perf_counter() - began)
    stats = jax.devices()[0].memory_stats() or {}
    return dict(
        step_ms=[round(1000 * t, 3) for t in times],
        memory_bytes=stats.get("peak_bytes_in_use") or peak_bytes(),
        joules_per_step=None if spent.joules is None else round(spent.joules / steps, 3),
        energy_by=spent.by,
    )


def used(task: Task, seconds: float, count: int, roofs: dict[str, float]) -> dict:
    """Tokens/s of a step of `seconds`, and how much of the devices that is."""
    peak, name = best_flops(task.dtype, count, roofs["matmul_flops"])
    rate = task.B * task.T / seconds
    flop = gpt2.flop_per_token(task.model, task.T)
    return dict(
        tokens_per_s=round(rate, 1),
        mfu={formula: round(rate * f / peak, 4) for formula, f in flop.items()},
        peak=dict(flops=peak, name=name),
    )


def roof(chosen: ops.Ops, dtype: str, platform: str) -> dict[str, float]:
    """The measured ceilings of one device; arrays of a CPU's are smaller, or it takes minutes."""
    cpu = platform == "cpu"
    return dict(
        copy_bytes_per_s=round(ceilings.copy_rate(2**28 if cpu else 2**30)),
        matmul_flops=round(ceilings.matmul_rate(chosen, dtype, 2048 if cpu else 8192)),
    )


def best_flops(dtype: str, count: int, measured: float) -> tuple[float, str]:
    """The FLOP/s that MFU is a part of, and where they are from: the datasheet of a known device,
    else what was measured here."""
    device = devices.known(jax.devices()[0].device_kind)
    if device is None:
        return count * measured, "measured matmul rate"
    by = f", {device.float32_by}" if dtype == "float32" else ""
    return count * getattr(device, dtype), f"{device.source}{by}"


def device_name() -> str:
    """As the table of devices has it, or as the machine calls itself."""
    kind = jax.devices()[0].device_kind
    if device := devices.known(kind):
        return device.name
    return kind if kind != "cpu" else f"{machine.processor()}, {os.cpu_count()} cores"
