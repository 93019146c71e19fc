"""What a training step takes of a device's memory, before it is compiled, and what would fit.

Sizes come from the step itself: the state's from its shapes, the activations' from the model's own
forward, the rest from the step's jaxpr (liveness.py). So a new op or model is counted as it is.
"""

import dataclasses
import math
import os
import resource
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from llmc_jax import machine
from llmc_jax.config import RECOMPUTE, ModelConfig, RunStopped, TrainConfig, wants_memory
from llmc_jax.models import gpt2
from llmc_jax.ops import Ops
from llmc_jax.ops.op import size
from llmc_jax.training import liveness, parallel, placement, processes
from llmc_jax.training.rooms import rooms_like
from llmc_jax.training.step import state_shapes


class Memory(NamedTuple):
    """Bytes of a training step on one device."""

    parameters: int
    moments: int
    rest: int  # token ids, counters
    activations: dict[str, int]  # tensor of gpt2.BlockActs or gpt2.Acts -> bytes in all layers
    total: int
    peak_in: str  # what is run when most is needed

    @property
    def kept(self) -> int:
        """All that has a row of its own."""
        own = self.parameters + self.moments + self.rest
        return own + sum(self.activations.values())


def step_memory(
    ops: Ops, model: ModelConfig, cfg: TrainConfig, platform: str, devices: int = 1
) -> Memory:
    """Of the step that `cfg` describes, micro-batches of --batch_size on each of `devices`.

    platform: where it is to run (cpu, gpu, tpu), which need not be here, nor the devices.

    For several of them it is an estimate (benchmarks/results/memory_plan.md): of d6 and d12 on 8
    virtual CPUs, at every stage of ZeRO, up to 7 % below XLA's plan with our kernels, from 3 %
    above to 21 % below with jnp.
    """
    mesh = parallel.planned_mesh(devices)
    several = cfg.total_batch_size > cfg.batch_size * cfg.sequence_length * devices
    # two micro-batches are as many as any number, but for the tokens
    rows = cfg.batch_size * devices
    batch = placement.micro_batches_like((1 + several, rows, cfg.sequence_length), mesh)
    mapped = parallel.map_train_step(ops, model, dataclasses.replace(cfg, mapper="shard_map"), mesh)
    # Of micro-batches in a loop, XLA lays all that the rooms have room for in them; so they need
    # not be there for the sum to be right, and what is in a loop is planned by itself.
    rooms = [] if several else rooms_like(ops, model, cfg, platform, devices)
    arguments = (placement.state_like(state_shapes(model), mesh, cfg), rooms, batch, batch)
    structure = jax.tree.structure(arguments)
    jaxpr = _of_one_device(mapped.trace(*arguments))
    constants = len(jaxpr.invars) - structure.num_leaves
    # of one device, where those of the mesh are in parts
    arguments = structure.unflatten(v.aval for v in jaxpr.invars[constants:])
    state, rooms, *batches = arguments
    donated = range(constants, constants + len(jax.tree.leaves((state, rooms))))
    plan = liveness.plan(jaxpr, donated, cpu=platform == "cpu")
    return Memory(
        parameters=size(state.params),
        moments=size((state.m, state.v)),
        rest=size((state[3:], batches)),
        activations=activations(ops, model, cfg),
        total=size(arguments) + plan.peak,
        peak_in=plan.where or "the optimizer",
    )


def _of_one_device(traced):
    """The jaxpr that each device runs, of a mapped step that is traced. In front of the step's
    arguments it may take constants."""
    (mapped,) = traced.jaxpr.jaxpr.eqns
    return mapped.params["jaxpr"]


def planned_bytes(compiled) -> int:
    """Memory that XLA plans for a compiled step: arguments, results that are not written over
    them, and everything in between (its peak_memory_in_bytes leaves that out on the CPU)."""
    memory = compiled.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + results + memory.temp_size_in_bytes


def activations(ops: Ops, model: ModelConfig, cfg: TrainConfig) -> dict[str, int]:
    """Tensor -> bytes that the model's forward keeps for its backward, in all layers."""
    tokens = jax.ShapeDtypeStruct((cfg.batch_size, cfg.sequence_length), jnp.int32)
    dlosses = jax.ShapeDtypeStruct(tokens.shape, jnp.float32)
    options = dict(cfg=model, recompute=cfg.recompute, dtype=cfg.dtype)
    forward = partial(gpt2.forward, ops, **options)
    _, acts = jax.eval_shape(forward, gpt2.shapes(model), tokens, tokens, dlosses)
    sizes: dict[str, int] = {}
    for where in (*acts.block, acts):
        for name in where._fields:
            if name != "block" and (bytes := size(getattr(where, name))):
                sizes[name] = sizes.get(name, 0) + bytes
    return sizes


def table(memory: Memory, cfg: TrainConfig) -> str:
    """The memory as a Markdown table."""
    rows = [
        ("parameters, float32", memory.parameters),
        ("AdamW's two moments", memory.moments),
        *((f"activations: {name}", bytes) for name, bytes in memory.activations.items()),
        (f"gradients and what else is needed at the peak ({memory.peak_in})",
         memory.total - memory.kept),
        (f"the step, B={cfg.batch_size} T={cfg.sequence_length} {cfg.dtype} "
         f"recompute {cfg.recompute}", memory.total),
    ]  # fmt: skip
    width = max(len(name) for name, _ in rows)
    lines = [f"| {'memory of one device':{width}} | {'MiB':>10} |"]
    lines += [f"|{'-' * (width + 2)}|{'-' * 11}:|"]
    lines += [f"| {name:{width}} | {bytes / 2**20:10,.1f} |" for name, bytes in rows]
    return "\n".join(lines)


def what_would_fit(
    ops: Ops, model: ModelConfig, cfg: TrainConfig, platform: str, devices: int, limit: int
) -> str:
    """Flags with which the step fits in `limit` bytes, as a sentence: the largest micro-batch, and
    for it the least --recompute. The tokens of a step, and so the run, stay what they are.

    The last level of --recompute only where nothing else fits: it costs more time than smaller
    micro-batches do.
    """

    def total(batch_size: int, recompute: int) -> int:
        less = dataclasses.replace(cfg, batch_size=batch_size, recompute=recompute)
        return step_memory(ops, model, less, platform, devices).total

    for most in RECOMPUTE[-2:]:
        sizes = divisors(cfg.batch_size)
        if cfg.recompute >= most:
            sizes.pop()  # that is what did not fit
        batch_size = largest_fitting(sizes, lambda size, most=most: total(size, most) <= limit)
        if batch_size:
            break
    else:
        bytes, batch_size = min((total(B, most), B) for B in (1, cfg.batch_size))
        return (
            f"--batch_size={batch_size} --recompute={most} would take {bytes / 2**20:,.0f} MiB: "
            f"take a smaller --model or --sequence_length, or a device with more memory"
        )
    least, flags = cfg.recompute + 1, ""
    if batch_size != cfg.batch_size:
        least, flags = 0, f" --total_batch_size={cfg.total_batch_size}"
    recompute = next(n for n in RECOMPUTE if n >= least and total(batch_size, n) <= limit)
    return (
        f"--batch_size={batch_size} --recompute={recompute}{flags} would take "
        f"{total(batch_size, recompute) / 2**20:,.0f} MiB and fit"
    )


def largest_fitting(sizes: list[int], fits: Callable[[int], bool]) -> int:
    """Of the micro-batches `sizes`, in order, the largest that fits; 0: none does.

    Smaller ones take less, but for the last: it may be a whole step, whose gradients are not added
    up, and take less than two halves do.
    """
    if sizes and fits(sizes[-1]):
        return sizes[-1]
    fitting = bisect_left(sizes[:-1], True, key=lambda size: not fits(size))
    return sizes[fitting - 1] if fitting else 0


def divisors(number: int) -> list[int]:
    """In order; by those up to the root, for a mistyped --batch_size may be huge."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def device_memory() -> int:
    """Bytes that a step may take on each device that is here: what its allocator has, or of the
    host's memory what this process may take, which its devices share."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if limit := stats.get("bytes_limit"):
        return limit
    page = os.sysconf("SC_PAGE_SIZE")
    host = min(page * os.sysconf("SC_PHYS_PAGES"), machine.memory_of_group())
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        size, resident, *_ = map(int, Path("/proc/self/statm").read_text().split())
        host = min(limit - page * (size - resident), host)  # libraries are mapped, never in memory
    return host // jax.local_device_count()


def copy_of_state(model: ModelConfig, cfg: TrainConfig) -> int:
    """Bytes that the copy which checkpoints are written from takes of each device's memory: of that
    of the host, which the first process makes it in, and which is a CPU's own."""
    if jax.default_backend() != "cpu" or not cfg.saves_checkpoints or not processes.first():
        return 0
    return size(state_shapes(model)) // jax.local_device_count()


def size_on_each(like) -> int:
    """Bytes that each device holds of arrays placed as the shapes `like` say."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(like)
    )


def refuse_too_large(
    planned: int, ops: Ops, model: ModelConfig, cfg: TrainConfig, saved: Callable[[], str]
) -> None:
    """Raises RunStopped where the step takes `planned` bytes or more, and there are not so many: a
    host's allocator gives them all the same, and the system ends the process when they are touched;
    or XLA ends it, which has no other answer where the host gives it nothing to compile in."""
    if planned + copy_of_state(model, cfg) > device_memory():
        raise out_of_memory(ops, model, cfg, saved())


@contextmanager
def enough(told: Callable[[], RunStopped]) -> Iterator[None]:
    """Raises what `told` gives where XLA or NumPy fails inside for want of memory."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not wants_memory(error):
            raise
        raise told() from error


def out_of_memory(ops: Ops, model: ModelConfig, cfg: TrainConfig, saved: str) -> RunStopped:
    """What is said where a run's step does not fit: the table, and flags that would.

    saved: what is left of the run, as the end of a sentence.
    """
    where = (jax.default_backend(), jax.device_count())
    memory, copy = step_memory(ops, model, cfg, *where), copy_of_state(model, cfg)
    limit = device_memory()
    less = f", less {copy / 2**20:,.0f} MiB for the copy of a checkpoint" if copy else ""
    return RunStopped(
        f"the device's memory, {limit / 2**20:,.0f} MiB{less}, is not enough for this step; "
        f"{saved}.\n\n"
        f"{table(memory, cfg)}\n\n"
        f"{what_would_fit(ops, model, cfg, *where, limit - copy)}. (python -m llmc_jax.plan takes "
        f"the flags of the run, and says so before it.)"
    )
