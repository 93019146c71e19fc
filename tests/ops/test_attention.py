"""What is particular to attention: JAX's own, behind our contract."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmc_jax.ops import attention


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_of_jax_behind_the_contract(dtype):
    """By XLA here; --ops=attention=cudnn is the same function with another word in it."""
    NH = 3
    rng = np.random.default_rng(0)
    qkv = jnp.asarray(rng.normal(size=(2, 9, 3 * NH * 8)), dtype)
    dout = jnp.asarray(rng.normal(size=(2, 9, NH * 8)), dtype)

    @partial(jax.jit, static_argnums=0)
    def forward_and_backward(op, qkv, dout):
        out, saved = op.forward(qkv, NH=NH)
        return out, *op.backward(saved, dout, qkv, NH=NH)

    by_xla = partial(attention.dot_product_attention, implementation="xla")
    results = forward_and_backward(attention.from_jax(by_xla), qkv, dout)
    for result, wanted in zip(results, forward_and_backward(attention.JNP, qkv, dout), strict=True):
        assert result.dtype == wanted.dtype and result.shape == wanted.shape
        tolerance = 8 * float(jnp.finfo(dtype).eps)
        scale = float(jnp.abs(wanted.astype(jnp.float32)).max())
        np.testing.assert_allclose(
            *(np.asarray(x, np.float32) for x in (result, wanted)), atol=tolerance * scale
        )
