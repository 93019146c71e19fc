"""The kernels of attention for sm_90, by the same measure as those of test_cuda_attention.py."""

import numpy as np
import pytest

from llmc_jax import ops
from tests.ops import emulator
from tests.ops.test_cuda_attention import check, run

# (B, T, NH, HS): T on both sides of a tile of 64 queries and one of 128 keys, and of two of them.
SIZES = [(1, 1, 2, 64), (2, 63, 1, 64), (1, 65, 3, 64), (1, 129, 1, 64), (1, 300, 2, 64)]
SIZES += [(1, 64, 1, 128), (1, 200, 1, 128)]
CASES = [(*size, dtype, 1) for size in SIZES for dtype in ("bfloat16", "float16")]
# Scores in the hundreds, whose exponentials no float32 holds.
CASES += [(1, 130, 1, 64, "bfloat16", 8), (1, 130, 1, 128, "bfloat16", 8)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention(case):
    """Forward gives the same bits whatever the order of threads."""
    op = ops.implementation("attention", "emulated")
    bits = []
    for schedule in emulator.SCHEDULES:
        with emulator.machine(schedule, architecture=90):
            results = run(op, case)
        check(results, case)
        bits.append(results[:2])
    for again in bits[1:]:
        assert all(map(np.array_equal, bits[0], again))
