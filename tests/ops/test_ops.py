"""Every implementation of every op on every case: backward against autodiff, kernels against jnp.

The jnp backward must be jax.vjp of the jnp forward in float64. A kernel may be at most twice as
far from the float64 result as jnp in the kernel's dtype is (plus one rounding).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmc_jax import ops
from llmc_jax.ops.cases import CASES, Case, make_inputs
from llmc_jax.ops.op import accumulation_dtype

ALL = [(op, number) for op, cases in CASES.items() for number in range(len(cases))]
KERNELS = [(op, number) for op, number in ALL if "ffi" in ops.TABLE[op]]
DTYPES = ["float32", "bfloat16"]


def run(op, case: Case, inputs):
    """(out, gradients...) of one implementation, compiled together."""

    @jax.jit
    def both(inputs, dout):
        out, saved = op.forward(*inputs, **case.static)
        return out, *op.backward(saved, dout.astype(out.dtype), *inputs, **case.static)

    return both(inputs, make_dout(op, case, inputs))


def make_dout(op, case: Case, inputs):
    if case.dout is not None:
        return inputs[case.dout]
    out = jax.eval_shape(partial(op.forward, **case.static), *inputs)[0]
    values = np.random.default_rng(1).normal(size=out.shape)
    return jnp.asarray(values, jnp.float32).astype(jnp.bfloat16).astype(out.dtype)


def exact(op: str, case: Case, inputs) -> list[np.ndarray]:
    """The float64 result of jnp on the same values."""
    with jax.enable_x64(True):
        wide = [x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x
                for x in map(jnp.asarray, inputs)]  # fmt: skip
        return [np.asarray(x) for x in run(ops.TABLE[op]["jnp"], case, wide)]


def error(result, reference) -> float:
    return float(np.max(np.abs(np.asarray(result, np.float64) - reference)))


@pytest.mark.parametrize(("op", "number"), ALL)
def test_backward_is_the_vjp_of_forward(op, number):
    case, jnp_op = CASES[op][number], ops.TABLE[op]["jnp"]
    with jax.enable_x64(True):
        inputs = make_inputs(case, jnp.float64)
        dout = make_dout(jnp_op, case, inputs)
        wanted = case.differentiable()

        def forward(*variables):
            full = list(inputs)
            for index, value in zip(wanted, variables, strict=True):
                full[index] = value
            return jnp_op.forward(*full, **case.static)[0]

        _, vjp = jax.vjp(forward, *(inputs[i] for i in wanted))
        _, *grads = run(jnp_op, case, inputs)
        for grad, reference in zip(grads, vjp(dout), strict=True):
            np.testing.assert_allclose(grad, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "number"), ALL)
def test_gradients_have_the_dtypes_of_the_contract(op, number, dtype):
    """Activations' gradients in their dtype, parameters' in float32; shapes as the inputs'."""
    case, jnp_op = CASES[op][number], ops.TABLE[op]["jnp"]
    inputs = make_inputs(case, jnp.dtype(dtype))
    _, *grads = run(jnp_op, case, inputs)
    for index, grad in zip(case.differentiable(), grads, strict=True):
        activation = case.inputs[index].kind == "tensor" and len(case.inputs[index].shape) == 3
        assert grad.dtype == (dtype if activation else accumulation_dtype(jnp.dtype(dtype)))
        assert grad.shape == inputs[index].shape


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "number"), KERNELS)
def test_kernel_is_as_close_as_jnp(op, number, dtype):
    case = CASES[op][number]
    inputs = make_inputs(case, jnp.dtype(dtype))
    results = run(ops.TABLE[op]["ffi"], case, inputs)
    naive = run(ops.TABLE[op]["jnp"], case, inputs)
    for result, same_dtype, reference in zip(results, naive, exact(op, case, inputs), strict=True):
        assert result.dtype == same_dtype.dtype and result.shape == same_dtype.shape
        rounding = float(jnp.finfo(result.dtype).eps) * np.max(np.abs(reference))
        assert error(result, reference) <= 2 * error(same_dtype, reference) + rounding


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "number"), KERNELS)
def test_kernel_gives_the_same_bits_twice(op, number, dtype):
    case = CASES[op][number]
    inputs = make_inputs(case, jnp.dtype(dtype))
    first, second = (run(ops.TABLE[op]["ffi"], case, inputs) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("implementation", ["jnp", "ffi"])
def test_padded_columns_and_ignored_rows_take_no_part(implementation):
    """Whatever the padded rows of wte hold, they get no gradient; an ignored row gives nothing."""
    case = CASES["classifier"][0]
    lnf, wte, targets, dlosses = make_inputs(case, jnp.float32)
    V = case.static["V"]
    op = ops.TABLE["classifier"][implementation]
    losses, dlnf, dwte = run(op, case, [lnf, wte, targets, dlosses])
    other = run(op, case, [lnf, wte.at[V:].set(100.0), targets, dlosses])
    assert np.array_equal(losses, other[0]) and np.array_equal(dlnf, other[1])
    assert not np.any(dwte[V:])
    ignored = np.asarray(targets) < 0
    assert ignored.any() and not np.any(np.asarray(losses)[ignored])
    assert not np.any(np.asarray(dlnf)[ignored])
