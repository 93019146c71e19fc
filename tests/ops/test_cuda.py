"""The CUDA kernels, run by the emulator, on every case, against jnp in float64.

A kernel may be at most twice as far from the float64 result as jnp in the kernel's dtype is (plus
one rounding), whatever the order of its threads.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmc_jax import ops
from tests.ops import emulator


@pytest.mark.parametrize("schedule", emulator.SCHEDULES)
def test_global_norm(schedule):
    rng = np.random.default_rng(0)
    sizes = [(1,), (3,), (5, 7), (1000,), (301, 67), *[(9,)] * 60]
    grads = [jnp.asarray(rng.normal(size=size), jnp.float32) for size in sizes]
    with emulator.machine(schedule):
        norm = jax.jit(ops.implementation("global_norm", "emulated"))(grads)
    reference = np.sqrt(sum(np.sum(np.asarray(g, np.float64) ** 2) for g in grads))
    np.testing.assert_allclose(norm, reference, rtol=1e-6)
