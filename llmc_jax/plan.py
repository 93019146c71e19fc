"""What a run takes, before it is started: python -m llmc_jax.plan --memory=80GiB --device=H100.

Takes every flag of llmc_jax.train, so a run's flagfile too. The device need not be here.
"""

import dataclasses
import math
import re
from dataclasses import dataclass
from functools import cache, partial

import jax

from llmc_jax import devices, ops, program
from llmc_jax.config import RECOMPUTE, BadInput, ModelConfig, TrainConfig, option
from llmc_jax.data.loader import TokenLoader
from llmc_jax.devices import Device
from llmc_jax.interop.source import open_model
from llmc_jax.models import gpt2
from llmc_jax.run_setup import (
    no_multiple,
    refuse_long_sequences,
    refuse_mapping,
    refuse_numbers,
)
from llmc_jax.training import memory, parallel, placement
from llmc_jax.training.memory import Memory
from llmc_jax.training.rooms import rooms_like
from llmc_jax.training.step import state_shapes

UNITS = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
# What JAX's allocator takes of a GPU unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
GPU_FRACTION = 0.75
# Of memory.step_memory, whose docstring says more.
SEVERAL = (
    "for several devices that is an estimate: of d6 and d12 on 8 virtual CPUs up to 7 % below "
    "XLA's own plan with our kernels, from 3 % above to 21 % below with jnp; of d12 on 8 H100s "
    "(compiled without them) within 0.5 %"
)
LARGEST = 1 << 16  # micro-batch that is looked for


@dataclass(frozen=True)
class PlanConfig(TrainConfig):
    """A training run, and where it is to be made."""

    device: str = option(
        "", "device it is planned for, of the table in llmc_jax/devices.py; empty: the one here"
    )
    memory: str = option(
        "",
        "memory a step may take of a device, e.g. 80GiB; empty: that of --device (of a GPU the "
        "three quarters that JAX takes), or of the one here",
    )
    num_devices: int = option(
        0,
        "how many of them, in all processes; 0: in each of --num_processes N of --devices=cpu:N, "
        "or one",
        minimum=0,
    )
    mfu: float = option(0.4, "part of the device's peak that the step reaches", minimum=0.001)
    tokens: int = option(
        0, "tokens to train on; 0: by --max_steps, or one epoch of --train_data", minimum=0
    )
    check: bool = option(
        False, "compile the step here and compare: minutes for a large model, but it needs no run"
    )


def main(cfg: PlanConfig) -> None:
    """Print the tables."""
    refuse_numbers(cfg)
    refuse_mapping(cfg)
    if cfg.mfu > 1:
        raise BadInput(f"--mfu={cfg.mfu} is a part of the peak, 1 at most; 40 % are written 0.4.")
    virtual = parallel.select_devices(cfg.devices)
    cfg = dataclasses.replace(cfg, num_devices=count_devices(cfg, virtual))
    model, _ = open_model(cfg.model)
    refuse_long_sequences(cfg, model)
    device = (
        devices.named(cfg.device) if cfg.device else devices.known(jax.devices()[0].device_kind)
    )
    platform = device.platform if device else jax.default_backend()
    limit = memory_limit(cfg, device)
    copy = 0 if cfg.memory or cfg.device else memory.copy_of_state(model, cfg)
    given = cfg.total_batch_size != -1
    cfg = with_total(cfg)
    if cfg.check:
        refuse_check(cfg, platform)
    here = cfg.check or not cfg.device  # where the ops are to run, their kernels are loaded
    chosen, names = ops.select(cfg.ops, platform, model.HS, here=here)
    told = device.name if device else jax.devices()[0].device_kind
    less = f", less {copy / 2**30:.2f} GiB for the copy of a checkpoint" if copy else ""
    print(
        f"model    {cfg.model}: {model.num_parameters:,} parameters\n"
        f"device   {cfg.num_devices} x {told}, {limit / 2**30:.2f} GiB for a step of each{less}\n"
        f"ops      {', '.join(f'{op} {name}' for op, name in names.items())}\n"
    )
    total_of = cache(partial(total, chosen, model, cfg, platform, given))
    planned = total_of(cfg.batch_size)
    print(memory.table(planned, cfg))
    print(verdict(cfg, planned, max(0, limit - copy), total_of, given))
    if cfg.num_devices > 1:
        print(SEVERAL)
    if cfg.check:
        print(check(chosen, model, cfg, platform, planned))
    print("\n" + work(model, cfg, device))


def count_devices(cfg: PlanConfig, virtual: int) -> int:
    """The devices of all processes, `virtual` (0: not said) in each. Raises BadInput where
    --num_devices is a number that training would not have."""
    processes = max(1, cfg.num_processes)
    if not cfg.num_devices:
        return processes * (virtual or 1)
    if cfg.num_processes > 0 and virtual and cfg.num_devices != processes * virtual:
        raise BadInput(
            f"--num_devices={cfg.num_devices} is another number than --devices={cfg.devices} gives "
            f"--num_processes={processes}, {processes * virtual}; leave it out."
        )
    if virtual and cfg.num_devices % virtual:
        raise BadInput(
            f"--num_devices={cfg.num_devices} is no multiple of the {virtual} that "
            f"--devices={cfg.devices} gives each process; leave one of the two out."
        )
    return cfg.num_devices


def memory_limit(cfg: PlanConfig, device: Device | None) -> int:
    """Bytes that a step may take of one device. Raises BadInput."""
    if cfg.memory:
        match = re.fullmatch(r"([0-9.]+) ?([A-Za-z]*)", cfg.memory)
        if not match or match[2] not in UNITS or match[1].count(".") > 1 or match[1] == ".":
            raise BadInput(
                f"--memory={cfg.memory} is not a size; write for instance 80GiB, 16GB or 24000MiB."
            )
        limit = float(match[1]) * UNITS[match[2]]
        if not 1 <= limit < math.inf:
            raise BadInput(f"--memory={cfg.memory} is what no device has; give what yours has.")
        return int(limit)
    if cfg.device:
        return int(device.memory * (GPU_FRACTION if device.platform == "gpu" else 1))
    return memory.device_memory()


def refuse_check(cfg: PlanConfig, platform: str) -> None:
    """Raises BadInput where --check cannot compile the step here, or it would be another one."""
    if platform != jax.default_backend():
        raise BadInput(
            f"--check compiles the step for the device here ({jax.default_backend()}), and "
            f"--device={cfg.device} is none; leave --check out."
        )
    if cfg.num_devices != 1 or cfg.zero_stage:
        raise BadInput(
            "--check compares the step of one device; leave out --num_devices, --devices and ZeRO."
        )


def with_total(cfg: PlanConfig) -> PlanConfig:
    """`cfg` with --total_batch_size filled in. Raises BadInput where it is no multiple."""
    micro_batch = cfg.batch_size * cfg.sequence_length * cfg.num_devices
    tokens = micro_batch if cfg.total_batch_size == -1 else cfg.total_batch_size
    if tokens <= 0 or tokens % micro_batch:
        raise no_multiple(cfg, tokens, cfg.num_devices)
    schedule = dict(total_batch_size=tokens, schedule_steps=max(1, cfg.schedule_steps))
    return dataclasses.replace(cfg, **schedule)


def total(
    chosen, model: ModelConfig, cfg: PlanConfig, platform: str, given: bool, batch_size: int
) -> Memory:
    """Memory of a step with another micro-batch: of as many tokens as `cfg` has where they are
    `given`, else of as many micro-batches."""
    step = cfg.total_batch_size if given else cfg.total_batch_size * batch_size // cfg.batch_size
    cfg = dataclasses.replace(cfg, batch_size=batch_size, total_batch_size=step)
    return memory.step_memory(chosen, model, cfg, platform, cfg.num_devices)


def verdict(cfg: PlanConfig, planned: Memory, limit: int, total_of, given: bool) -> str:
    """Whether it fits, and the largest micro-batch that does; one that --total_batch_size is a
    multiple of, where that is `given`."""
    if given:
        rows = cfg.total_batch_size // (cfg.sequence_length * cfg.num_devices)
        sizes = memory.divisors(rows)
        largest = memory.largest_fitting(sizes, lambda size: total_of(size).total <= limit)
    else:
        largest = largest_batch(limit, lambda size: total_of(size).total)
    if not largest:
        level = max(RECOMPUTE)
        recompute = "" if cfg.recompute == level else f"--recompute={level}, "
        return (
            f"does not fit, and neither does --batch_size=1: a smaller --model or "
            f"--sequence_length, {recompute}more --num_devices with --zero_stage, or a device with "
            f"more than {limit / 2**30:.2f} GiB"
        )
    fits = "fits" if planned.total <= limit else "does not fit"
    if largest == LARGEST - 1 and not given:
        return f"{fits}; every --batch_size up to {largest:,} does (more were not looked at)"
    most = total_of(largest).total
    of = f" with --total_batch_size={cfg.total_batch_size}" if given else ""
    return (
        f"{fits}; the largest --batch_size that does{of} is {largest}, with {most / 2**20:,.1f} of "
        f"{limit / 2**20:,.1f} MiB"
    )


def largest_batch(limit: int, bytes_of) -> int:
    """The largest micro-batch below LARGEST of which bytes_of is at most `limit`; 0: none is.

    bytes_of grows, in a line with few bends, and a call takes seconds: so each guess is where the
    line through two known points meets the limit.
    """
    low, high = (0, 0), (LARGEST, math.inf)  # (batch size, bytes): fits, does not
    points = [(n, bytes_of(n)) for n in (1, 8)]
    while True:
        low = max([low, *(point for point in points if point[1] <= limit)])
        high = min([high, *(point for point in points if point[1] > limit)])
        if high[0] - low[0] <= 1:
            return low[0]
        (a, at_a), (b, at_b) = (low, high) if low[0] and high[1] < math.inf else points[-2:]
        guess = int(a + (limit - at_a) * (b - a) / max(1, at_b - at_a))
        if len(points) > 6:  # there is a bend between them
            guess = (low[0] + high[0]) // 2
        guess = min(max(guess, low[0] + 1), high[0] - 1)
        points.append((guess, bytes_of(guess)))


def check(chosen, model: ModelConfig, cfg: PlanConfig, platform: str, planned: Memory) -> str:
    """XLA's own plan for the step on the device here, beside ours."""
    rows = cfg.total_batch_size // cfg.sequence_length
    shape = (rows // cfg.batch_size, cfg.batch_size, cfg.sequence_length)
    mesh = parallel.make_mesh()
    state, rooms = state_shapes(model), rooms_like(chosen, model, cfg, platform, devices=1)
    batch = placement.micro_batches_like(shape, mesh, mapper=cfg.mapper)
    lowered = parallel.map_train_step(chosen, model, cfg, mesh).lower(state, rooms, batch, batch)
    by_xla = memory.planned_bytes(lowered.compile(parallel.compile_options(mesh)))
    return (
        f"XLA plans {by_xla / 2**20:,.1f} MiB: the table is "
        f"{100 * (planned.total / by_xla - 1):+.1f} % of that"
    )


def work(model: ModelConfig, cfg: PlanConfig, device: Device | None) -> str:
    """Tokens, steps, operations and time of the run, as a Markdown table."""
    tokens, unknown = tokens_of(cfg, model)
    flop = gpt2.flop_per_token(model, cfg.sequence_length)["llm.c"]
    rows = [
        ("tokens in a step", f"{cfg.total_batch_size:,}"),
        ("operations of a token (llm.c's formula)", f"{flop / 1e6:,.1f} MFLOP"),
    ]
    if tokens:
        rows += [
            ("tokens", f"{tokens:,}"),
            ("steps", f"{tokens // cfg.total_batch_size:,}"),
            ("operations", f"{flop * tokens:.3g} FLOP"),
        ]
    else:
        rows.append(("tokens, steps, operations", unknown))
    if tokens and device:
        peak = getattr(device, cfg.dtype)
        seconds = flop * tokens / (cfg.num_devices * peak * cfg.mfu)
        by = f"{cfg.mfu:.0%} of {peak / 1e12:,.0f} TFLOP/s ({device.source})"
        rows.append((f"time at {by}", duration(seconds)))
    elif tokens:
        rows.append(("time", "not known: give --device, or measure with llmc_jax.compare"))
    return "\n".join(
        ["| work | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    )


def tokens_of(cfg: PlanConfig, model: ModelConfig) -> tuple[int, str]:
    """(tokens of the run, '') or (0, why they are not known): a plan needs no data."""
    if cfg.tokens:
        return cfg.tokens, ""
    if cfg.max_steps > 0:
        return cfg.max_steps * cfg.total_batch_size, ""
    if not cfg.train_data:
        return 0, "give --tokens, --max_steps or --train_data"
    try:
        loader = TokenLoader("train_data", cfg.train_data, T=cfg.sequence_length, V=model.V)
    except BadInput as error:
        return 0, f"not known: {str(error).rstrip('.')}, or give --tokens=N"
    return loader.num_sequences * cfg.sequence_length, ""


def duration(seconds: float) -> str:
    """In the unit that one would say it in."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"


if __name__ == "__main__":
    program.run(main, PlanConfig)
