"""How calls are timed: many in a row, so that the GPU never waits for Python.

Calls are asynchronous: as long as one takes longer on the GPU than its dispatch on the host (some
20 to 50 us), the queue never runs dry, and the time between two synchronisations over the number
of calls is the GPU's. PyTorch's are between CUDA events; JAX has none, and one synchronisation
on some 30 ms is less than 0.1 %. Warm-up first, then the median of rounds. Calls go round several
sets of inputs, so that none finds its own in the cache.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence

from benchmarks.gpu_stages import results

SETS = 3  # of inputs
ROUNDS = 9
ROUND = 0.03  # seconds
WARMUP = 3  # calls, and one round


def _rounds(timed: Callable[[int], float]) -> float:
    """Median seconds of a call; timed(n) makes n of them and returns the seconds of all."""
    for _ in range(WARMUP):
        timed(1)
    if results.small():
        return timed(1)
    once = timed(3) / 3
    n = max(SETS, min(500, round(ROUND / once)))
    timed(n)
    rounds = ROUNDS if once < 0.2 else 3
    return statistics.median(timed(n) for _ in range(rounds)) / n


def of_jax(call: Callable, sets: Sequence) -> float:
    """Milliseconds of call(one of sets)."""
    import jax

    turn = itertools.cycle(sets)

    def timed(n: int) -> float:
        began = time.perf_counter()
        for _ in range(n):
            out = call(next(turn))
        jax.block_until_ready(out)
        return time.perf_counter() - began

    return 1000 * _rounds(timed)


def of_torch(call: Callable, sets: Sequence) -> float:
    """Milliseconds of call(one of sets)."""
    import torch

    turn = itertools.cycle(sets)

    def on_gpu(n: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(n):
            call(next(turn))
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000

    def on_cpu(n: int) -> float:
        began = time.perf_counter()
        for _ in range(n):
            call(next(turn))
        return time.perf_counter() - began

    return 1000 * _rounds(on_gpu if results.platform() == "gpu" else on_cpu)
