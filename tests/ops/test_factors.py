"""Gradients of weights that are left in their factors: whole again where they are multiplied."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmc_jax import ops
from llmc_jax.ops.adamw import Hyper
from llmc_jax.ops.cases import CASES, Case
from llmc_jax.ops.factors import Factors, arrays_of_each, multiplied
from tests.ops import emulator
from tests.ops.test_ops import problem

# (B, T, OC, C): one row, tiles not filled, several blocks of the norm's and of the product's
SHAPES = [(1, 1, 3, 7), (2, 33, 48, 20), (1, 130, 20, 48), (2, 150, 800, 65)]
WITH_FACTORS = [(op, n) for op in ("matmul", "mlp") for n in range(len(CASES[op]))]


def gradients(dtype) -> dict:
    """Gradients in factors between others, a tree as the model's is."""
    rng = np.random.default_rng(0)

    def make(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    blocks = [(make(3, 5), Factors(make(B, T, OC), make(B, T, C))) for B, T, OC, C in SHAPES]
    return dict(wte=make(70, 8), block=tuple(blocks))


def exact(grads) -> list[np.ndarray]:
    """The gradients whole, in float64."""
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), grads)
    leaves = jax.tree.leaves(wide, is_leaf=lambda x: isinstance(x, Factors))
    return [np.einsum("bto,btc->oc", *g) if isinstance(g, Factors) else g for g in leaves]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_multiplied_gives_every_gradient_whole(dtype):
    grads = gradients(dtype)
    assert arrays_of_each(grads) == (1, 2, 1, 2, 1, 2, 1, 2, 1)
    for whole, wanted in zip(jax.tree.leaves(multiplied(grads)), exact(grads), strict=True):
        np.testing.assert_allclose(np.asarray(whole, np.float64), wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("op", "number"), WITH_FACTORS)
def test_backward_in_factors_is_backward(op, number, dtype):
    """But for what the gradient of a weight is not rounded to."""
    case: Case = CASES[op][number]
    inputs, dout = problem(op, number, dtype)
    kernel = ops.TABLE[op]["ffi"]

    @jax.jit
    def both(inputs, dout):
        _, saved = kernel.forward(*inputs)
        return [f(saved, dout, *inputs) for f in (kernel.backward, kernel.backward_in_factors)]

    whole, in_factors = both(inputs, dout)
    left = [isinstance(g, Factors) for g in in_factors]
    assert left == [i > 0 and len(spec.shape) == 2 for i, spec in enumerate(case.inputs)]
    for is_left, given, wanted in zip(left, multiplied(in_factors), whole, strict=True):
        if not is_left:
            np.testing.assert_array_equal(given, wanted)
        else:
            # sums of large products that nearly cancel: each order of them rounds otherwise
            wanted = np.asarray(wanted, np.float32)
            rtol = {"float32": 1e-5, "bfloat16": 2**-8}[dtype]
            np.testing.assert_allclose(given, wanted, rtol, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("implementation", ops.TABLE["global_norm"])
def test_the_norm_is_that_of_the_products(implementation, dtype):
    if implementation == "cuda":
        emulator.library()
    grads = gradients(dtype)
    norm = jax.jit(ops.TABLE["global_norm"][implementation])(grads)
    everything = np.concatenate([g.ravel() for g in exact(grads)])
    np.testing.assert_allclose(norm, np.linalg.norm(everything), rtol=3e-6)


def test_the_norm_of_nothing_is_nothing():
    """Where a sum of squares may come out a little below 0."""
    norm = jax.jit(ops.TABLE["global_norm"]["ffi"])
    for seed in range(10):
        rng = np.random.default_rng(seed)
        dout, inp = rng.normal(size=(1, 20, 50)), rng.normal(size=(1, 20, 40))
        twice = np.concatenate([dout, -dout], axis=1), np.concatenate([inp, inp], axis=1)
        grads = Factors(*(jnp.asarray(x, jnp.float32) for x in twice))
        assert 0 <= float(norm([grads])) < 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_norm_tells_that_a_gradient_is_not_finite(value):
    grads = gradients(jnp.float32)
    left = grads["block"][1][1]
    spoilt = left._replace(dout=left.dout.at[1, 2, 3].set(value))
    norm = jax.jit(ops.TABLE["global_norm"]["ffi"])([spoilt, grads["wte"]])
    assert not np.isfinite(norm)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("implementation", ops.TABLE["adamw"])
def test_adamw_takes_factors_as_the_gradients_they_are(implementation, dtype):
    if implementation == "cuda":
        emulator.library()
    grads = gradients(dtype)
    whole = [jnp.asarray(g, jnp.float32) for g in exact(grads)]
    structure = jax.tree.structure(multiplied(grads))
    params, m, v = (
        structure.unflatten([jnp.full_like(g, value) for g in whole]) for value in (1, 0.1, 0.2)
    )
    hyper = Hyper(np.float32(3e-3), np.float32(0.25), np.int32(3), 0.9, 0.95, 1e-8)
    decay = jax.tree.map(lambda p: 0.1, params)
    run = {
        name: jax.jit(
            lambda grads, name=name: ops.TABLE["adamw"][name](
                params, grads, m, v, hyper, weight_decay=decay
            )
        )
        for name in ("jnp", implementation)
    }
    wanted = run["jnp"](structure.unflatten(whole))
    for a, b in zip(
        jax.tree.leaves(run[implementation](grads)), jax.tree.leaves(wanted), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
