"""The GELU's backward is the gradient of its forward, which is JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np

from llmc_jax.ops import gelu


def test_forward_is_jaxs_tanh_gelu():
    x = jnp.linspace(-9, 9, 999, dtype=jnp.float32).reshape(3, 3, 111)
    np.testing.assert_allclose(gelu.forward(x)[0], jax.nn.gelu(x), rtol=1e-5, atol=1e-6)


def test_backward_is_the_vjp_of_forward():
    with jax.enable_x64(True):
        x = jnp.linspace(-9, 9, 999).reshape(3, 3, 111)
        dout = jnp.cos(7 * x)
        out, vjp = jax.vjp(lambda x: gelu.forward(x)[0], x)
        assert out.dtype == jnp.float64
        np.testing.assert_allclose(gelu.backward((), dout, x), vjp(dout), rtol=1e-10, atol=1e-10)


def test_results_have_the_dtype_of_the_activations():
    x = jnp.ones((2, 3, 5), jnp.bfloat16)
    assert gelu.forward(x)[0].dtype == gelu.backward((), x, x)[0].dtype == jnp.bfloat16
