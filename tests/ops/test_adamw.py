"""Every implementation of AdamW makes the update of the formula, computed in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmc_jax import ops
from llmc_jax.ops.adamw import Hyper
from tests.ops import emulator

# odd on purpose: a single number, vectors and matrices that fill no tile, one of many tiles
SHAPES = [(1,), (7,), (65,), (48, 17), (300, 801)]


def trees(seed: int) -> list:
    """Parameters, gradients and moments: a tree each, with a tuple in it as the model's has.

    Gradients are partly bfloat16, as those of the layers' matrices are.
    """
    rng = np.random.default_rng(seed)

    def make(scale, power):
        leaves = [jnp.asarray(scale * rng.normal(size=s) ** power, jnp.float32) for s in SHAPES]
        return dict(wte=leaves[0], block=tuple(leaves[1:]))

    grads = make(3, 1)
    grads["block"] = tuple(
        g.astype(jnp.bfloat16) if number % 2 else g for number, g in enumerate(grads["block"])
    )
    return [make(1, 1), grads, make(0.1, 1), make(0.1, 2)]


def exact(param, grad, m, v, hyper: Hyper, weight_decay: float):
    """The update of one tensor in float64, from the paper."""
    param, grad, m, v = (np.asarray(x, np.float64) for x in (param, grad, m, v))
    lr, scale, step, beta1, beta2, eps = map(float, hyper)
    m = beta1 * m + (1 - beta1) * (scale * grad)
    v = beta2 * v + (1 - beta2) * (scale * grad) ** 2
    m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
    return param - lr * (m_hat / (np.sqrt(v_hat) + eps) + weight_decay * param), m, v


@pytest.mark.parametrize("step", [1, 2, 1000])
@pytest.mark.parametrize("implementation", ops.TABLE["adamw"])
def test_update_is_the_formula(implementation, step):
    if implementation == "cuda":
        emulator.library()
    update = ops.TABLE["adamw"][implementation]
    decay = dict(wte=0.0, block=(0.1, 0.0, 0.3, 0.1))
    state = trees(0)
    hyper = Hyper(np.float32(3e-3), np.float32(0.25), np.int32(step), 0.9, 0.95, 1e-8)

    @jax.jit
    def run(state, lr, scale, step):
        return update(*state, hyper._replace(lr=lr, scale=scale, step=step), weight_decay=decay)

    results = run(state, hyper.lr, hyper.scale, hyper.step)
    assert jax.tree.structure(results) == jax.tree.structure((state[0], state[2], state[3]))
    leaves = zip(*map(jax.tree.leaves, (*state, decay, *results)), strict=True)
    for param, grad, m, v, weight_decay, *updated in leaves:
        wanted = exact(param, grad, m, v, hyper, weight_decay)
        for result, reference in zip(updated, wanted, strict=True):
            assert result.dtype == jnp.float32 and result.shape == param.shape
            np.testing.assert_allclose(result, reference, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("implementation", ["jnp", "cuda"])
def test_bfloat16_parameters_move_as_float32_ones_on_average(implementation):
    """Though each step is a small part of the distance to the next such number."""
    if implementation == "cuda":
        emulator.library()
    update = ops.TABLE["adamw"][implementation]
    hyper = Hyper(jnp.float32(1e-4), jnp.float32(1), jnp.int32(1), 0.9, 0.95, 1e-8)

    @jax.jit
    def run(params, m, v, step):
        grads = jax.tree.map(jnp.ones_like, m)
        return update(params, grads, m, v, hyper._replace(step=step), weight_decay=[0.0, 0.0])

    params = [jnp.full((n,), 1.0, jnp.bfloat16) for n in (4001, 5000)]
    m = v = [jnp.zeros(p.shape, jnp.float32) for p in params]
    for step in range(1, 21):  # the gradient is always 1, so each step is lr
        params, m, v = run(params, m, v, jnp.int32(step))
    for param in params:
        assert param.dtype == jnp.bfloat16
        values = np.asarray(param, np.float64)
        np.testing.assert_allclose(1 - values.mean(), 20 * 1e-4, rtol=0.1)
        assert len(np.unique(values)) > 1


def test_the_kernel_rounds_by_the_same_chance_as_jnp():
    emulator.library()
    params, grads, m, v = trees(0)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    decay = jax.tree.map(lambda _: 0.1, params)
    hyper = Hyper(jnp.float32(3e-3), jnp.float32(0.25), jnp.int32(7), 0.9, 0.95, 1e-8)
    results, wanted = (
        jax.jit(partial(ops.TABLE["adamw"][name], hyper=hyper, weight_decay=decay))(
            params, grads, m, v
        )
        for name in ("cuda", "jnp")
    )
    same = [
        np.asarray(a) == np.asarray(b)
        for a, b in zip(*map(jax.tree.leaves, (results[0], wanted[0])), strict=True)
    ]
    # of float32 values that differ in the last bit a few are rounded differently
    assert np.mean(np.concatenate([x.ravel() for x in same])) > 0.999
