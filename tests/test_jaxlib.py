"""The installed jaxlib computes what the project relies on."""

import jax
import jax.numpy as jnp
import numpy as np


def test_reduction_over_a_small_product():
    """jaxlib 0.10.2 gets the last tile of this sum wrong on the CPU (jax#39103).

    pyproject.toml excludes that version; this fails where another one has the fault.
    """
    n = 32_769
    rows = np.zeros((n, 3), np.float32)
    rows[:, 0] = np.arange(n)
    lengths = jax.jit(jax.vmap(lambda row: jnp.sum(jnp.square(jnp.eye(3) @ row))))(rows)
    np.testing.assert_allclose(lengths, np.square(rows[:, 0], dtype=np.float64), rtol=1e-6)
