"""Every implementation of the global norm gives the norm of all leaves together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmc_jax import ops
from tests.ops import emulator


@pytest.mark.parametrize("implementation", ops.TABLE["global_norm"])
def test_it_is_the_norm_of_all_leaves_together(implementation):
    if implementation == "cuda":
        emulator.library()
    rng = np.random.default_rng(0)
    shapes = [(1,), (7,), (65,), (48, 17), (300, 801)]
    leaves = [
        jnp.asarray(rng.normal(size=shape), dtype)
        for shape in shapes
        for dtype in (jnp.float32, jnp.bfloat16)
    ]
    tree = dict(wte=leaves[0], block=tuple(leaves[1:]))
    norm = jax.jit(ops.TABLE["global_norm"][implementation])(tree)
    assert norm.dtype == jnp.float32 and norm.shape == ()
    everything = np.concatenate([np.asarray(x, np.float64).ravel() for x in leaves])
    np.testing.assert_allclose(norm, np.linalg.norm(everything), rtol=1e-6)
