"""The whole training step: PyTorch's, and ours by its choices of ops. Every row is a process.

Steps follow one another without a wait; the time of some of them over their number is a step's.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

from benchmarks.gpu_stages import results, stage, torch_step
from benchmarks.gpu_stages.sizes import PEAK, flop_per_token, sizes
from benchmarks.gpu_stages.stage import Row, Skip, need
from llmc_jax.config import RECOMPUTE

SECONDS = 150  # of a row: most of it is compiling


def rows() -> list[Row]:
    base = "jnp,attention=cudnn" if results.platform() == "gpu" else "jnp"
    cuda = "cuda" if results.platform() == "gpu" else "emulated"
    return [
        pytorch("bf16", "cudnn", first=True),
        ours(base, first=True),
        ours(cuda),
        pytorch("autocast", "cudnn"),
        ours("auto"),
        ours(f"{cuda},attention=cudnn"),
        *(ours(spec) for spec in one_kernel_on(base, cuda)),
        pytorch("bf16", "flash"),
        pytorch("autocast", "flash"),
        ours(f"{cuda},attention={cuda}_deterministic"),
        ours("auto", recompute=max(RECOMPUTE)),
    ]


def pytorch(recipe: str, backend: str, first: bool = False) -> Row:
    run = partial(time_torch, recipe, backend)
    return Row("step", f"torch.compile {recipe} {backend}", run, SECONDS, first)


def ours(spec: str, first: bool = False, recompute: int = 0) -> Row:
    flags = f"--ops={spec}" + (f" --recompute={recompute}" if recompute else "")
    return Row("step", flags, partial(time_ours, spec, recompute), SECONDS, first)


def one_kernel_on(base: str, cuda: str) -> list[str]:
    """--ops for each kernel alone."""
    from llmc_jax import ops

    with_kernel = [op for op in ops.TABLE if cuda in ops.names(op, results.platform())]
    return [f"{base},{op}={cuda}" for op in with_kernel]


def measured(step: Callable, began: float, wait: Callable) -> dict:
    """Milliseconds, tokens a second, MFU, losses of a step that wait(loss) waits for; it began to
    be prepared at the time `began`."""
    B, T, _, _, warmup, rounds, steps = sizes()
    losses = [step()]
    wait(losses[0])
    until_first = time.perf_counter() - began
    losses += [step() for _ in range(warmup - 1)]
    wait(losses[-1])
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        losses += [step() for _ in range(steps)]
        wait(losses[-1])
        times.append((time.perf_counter() - began) / steps)
    seconds = statistics.median(times)
    mfu = {name: flop * B * T / seconds / PEAK for name, flop in flop_per_token().items()}
    return dict(
        ms=round(1000 * seconds, 3),
        min_max=[round(1000 * min(times), 3), round(1000 * max(times), 3)],
        tokens_per_s=round(B * T / seconds),
        mfu_llmc=round(mfu["llm.c"], 4),
        mfu_nanogpt=round(mfu["nanoGPT"], 4),
        loss_first=round(float(losses[0]), 4),
        loss_last=round(float(losses[-1]), 4),
        steps=len(losses),
        first_step_after_s=round(until_first, 1),
    )


def time_torch(recipe: str, backend: str) -> dict:
    need("torch")
    import torch

    began = time.perf_counter()
    step = torch_step.prepare(recipe, backend)
    on_gpu = results.platform() == "gpu"
    result = measured(step, began, lambda loss: torch.cuda.synchronize() if on_gpu else None)
    return result | dict(peak_gib=gib(torch.cuda.max_memory_allocated() if on_gpu else 0))


def time_ours(spec: str, recompute: int) -> dict:
    import jax

    from benchmarks.gpu_stages import our_step
    from llmc_jax import ops

    _, names = ops.select(spec, jax.default_backend())
    if twin := measured_before(names, recompute):
        raise Skip(f"the same ops as {twin}")
    began = time.perf_counter()
    step = our_step.prepare(spec, recompute)
    result = measured(step.make, began, jax.block_until_ready)
    memory = jax.devices()[0].memory_stats() or {}
    return result | dict(
        peak_gib=gib(memory.get("peak_bytes_in_use", 0)),
        planned_gib=gib(step.planned),
        temporary_gib=gib(step.temporary),
        ops=names,
        recompute=recompute,
    )


def measured_before(names: dict[str, str], recompute: int) -> str:
    """The row of this run whose ops and --recompute these were; ''."""
    records = results.read()
    runs = [i for i, record in enumerate(records) if record.get("stage") == "run"]
    for record in records[runs[-1] if runs else 0 :]:
        same = record.get("ops") == names and record.get("recompute") == recompute
        if record.get("stage") == "step" and same:
            return record["by"]
    return ""


def gib(size: int) -> float:
    return round(size / 2**30, 2)


if __name__ == "__main__":
    stage.run("step", rows)
