"""Every implementation of every op on every case: backward against autodiff, kernels against jnp.

The jnp backward must be jax.vjp of the jnp forward in float64. A kernel may be at most twice as
far from the float64 result as jnp in the kernel's dtype is (plus one rounding, and what
`allowances` says).
"""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmc_jax import ffi, ops
from llmc_jax.ops import classifier
from llmc_jax.ops.cases import CASES, Case, make_inputs, shapes
from llmc_jax.ops.op import accumulation_dtype
from tests import quick

ALL = [(op, number) for op, cases in CASES.items() for number in range(len(cases))]
KERNELS = [(op, number) for op, number in ALL if "ffi" in ops.TABLE[op]]
DTYPES = ["float32", "bfloat16"]


@functools.cache
def both(op: str, number: int, implementation: str, jit=jax.jit):
    """A compiled function of (inputs, dout): (out, gradients)."""
    case, chosen = CASES[op][number], ops.TABLE[op][implementation]

    def forward_and_backward(inputs, dout):
        out, saved = chosen.forward(*inputs, **case.static)
        backward_inputs = case.backward_inputs(inputs, out)
        return out, chosen.backward(saved, dout, *backward_inputs, **case.static)

    return jit(forward_and_backward)


def problem(op: str, number: int, dtype: str):
    """(inputs, dout) of a case; the same values in every dtype."""
    case = CASES[op][number]
    inputs = make_inputs(case, jnp.dtype(dtype))
    return inputs, make_dout(ops.TABLE[op]["jnp"], case, inputs)


def make_dout(op, case: Case, inputs):
    if case.dout is not None:
        return inputs[case.dout]
    out = jax.eval_shape(partial(op.forward, **case.static), *inputs)[0]
    rng = np.random.default_rng(1)

    def make(x):
        values = rng.normal(size=x.shape).astype(np.float32)
        return jnp.asarray(values.astype(jnp.bfloat16).astype(x.dtype))

    return jax.tree.map(make, out)


def run(op: str, number: int, implementation: str, dtype: str) -> list:
    """[outputs..., gradients...] of one implementation on one case."""
    return jax.tree.leaves(both(op, number, implementation)(*problem(op, number, dtype)))


@functools.cache
def naive(op: str, number: int, dtype: str) -> list[np.ndarray]:
    """The result of jnp in `dtype`."""
    return list(map(np.asarray, run(op, number, "jnp", dtype)))


@functools.cache
def exact(op: str, number: int) -> list[np.ndarray]:
    """The float64 result of jnp."""
    with jax.enable_x64(True):
        results = both(op, number, "jnp", quick.jit)(*problem(op, number, "float64"))
        return list(map(np.asarray, jax.tree.leaves(results)))


def error(result, reference) -> float:
    return float(np.max(np.abs(np.asarray(result, np.float64) - reference)))


@pytest.mark.parametrize(("op", "number"), ALL)
def test_backward_is_the_vjp_of_forward(op, number):
    case = CASES[op][number]
    forward = partial(ops.TABLE[op]["jnp"].forward, **case.static)
    wanted = case.gradients()

    @quick.jit
    def autodiff(inputs, dout):
        def outputs(*variables):
            full = list(inputs)
            for index, value in zip(wanted, variables, strict=True):
                full[index] = value
            return forward(*full)[0]

        out, vjp = jax.vjp(outputs, *(inputs[i] for i in wanted))
        before = case.backward_inputs(inputs, out)
        return [
            grad + before[i] if i == case.so_far else grad
            for i, grad in zip(wanted, vjp(dout), strict=True)
        ]

    with jax.enable_x64(True):
        references = autodiff(*problem(op, number, "float64"))
    for grad, reference in zip(exact(op, number)[-len(wanted) :], references, strict=True):
        np.testing.assert_allclose(grad, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "number"), ALL)
def test_gradients_have_the_dtypes_of_the_contract(op, number, dtype):
    """Those of activations and of linear layers' weights in their dtype, others in float32."""
    case = CASES[op][number]
    inputs = shapes(case, jnp.dtype(dtype))
    out = jax.eval_shape(partial(ops.TABLE[op]["jnp"].forward, **case.static), *inputs)[0]
    dout = out if case.dout is None else inputs[case.dout]
    _, grads = jax.eval_shape(both(op, number, "jnp"), inputs, dout)
    for index, grad in zip(case.gradients(), grads, strict=True):
        spec = case.inputs[index]
        rounded = len(spec.shape) == 3 or (len(spec.shape) == 2 and op in ("matmul", "mlp"))
        assert grad.dtype == (dtype if rounded else accumulation_dtype(jnp.dtype(dtype)))
        assert grad.shape == inputs[index].shape


@functools.cache
def allowances(op: str, number: int, dtype: str) -> list[float]:
    """What each result of a kernel may be further away from the exact one.

    dwte of the classifier is made of powers of e and of lnf times the rows' factors, both rounded;
    jnp rounds their product, dlogits, in which a probability of nearly 1 happens to be exact.
    """
    allowed = [0.0] * len(exact(op, number))
    if op == "classifier":
        with jax.enable_x64(True):
            (lnf, wte, targets, dlosses), _ = problem(op, number, "float64")
            static = CASES[op][number].static
            saved = quick.jit(partial(classifier.forward, **static))(lnf, wte, targets, dlosses)[1]
            dlogits, lnf = np.array(saved.dlogits), np.asarray(lnf).reshape(-1, lnf.shape[-1])
        dlogits, lnf = np.abs(dlogits), np.abs(lnf)
        np.put_along_axis(dlogits, np.maximum(targets, 0).reshape(-1, 1), 0, axis=1)
        allowed[-1] = float(jnp.finfo(dtype).eps) / 2 * np.max(dlogits.T @ lnf)
    return allowed


@pytest.mark.parametrize("isa", ffi.supported_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "number"), KERNELS)
def test_kernel_is_as_close_as_jnp_and_gives_the_same_bits_twice(use_isa, op, number, dtype, isa):
    use_isa(isa)
    results, again = (run(op, number, "ffi", dtype) for _ in range(2))
    assert all(map(np.array_equal, results, again))
    others = naive(op, number, dtype)
    references, allowed = exact(op, number), allowances(op, number, dtype)
    for result, same_dtype, reference, more in zip(
        results, others, references, allowed, strict=True
    ):
        assert result.dtype == same_dtype.dtype and result.shape == same_dtype.shape
        rounding = float(jnp.finfo(result.dtype).eps) * np.max(np.abs(reference))
        assert error(result, reference) <= 2 * error(same_dtype, reference) + rounding + more


@pytest.mark.parametrize("implementation", ["jnp", "ffi"])
@pytest.mark.parametrize("op", ["encoder", "matmul", "mlp", "classifier"])
def test_float32_weights_are_rounded_as_they_are_read(op, implementation):
    """Beside bfloat16 activations they give the bits that weights rounded beforehand give.

    (Kernels that make the products of bfloat16 in float32 use the weights as they are.)
    """
    if implementation == "ffi" and "amx" not in ffi.supported_isas():
        pytest.skip("this machine makes no products in bfloat16 with AMX")
    case, chosen = CASES[op][-1], ops.TABLE[op][implementation]
    rounded, dout = problem(op, len(CASES[op]) - 1, "bfloat16")
    weights = [i for i, s in enumerate(case.inputs) if s.kind == "tensor" and len(s.shape) == 2]
    precise = list(rounded)
    for i in weights:
        precise[i] = 1.001 * rounded[i].astype(jnp.float32)
        rounded[i] = precise[i].astype(jnp.bfloat16)
    dtype = dict(dtype=jnp.bfloat16) if op == "encoder" else {}

    @jax.jit
    def forward_and_backward(inputs):
        out, saved = chosen.forward(*inputs, **case.static, **dtype)
        if op == "encoder":  # its backward reads no weights
            return out
        return out, chosen.backward(saved, dout, *inputs, **case.static)

    results = (jax.tree.leaves(forward_and_backward(inputs)) for inputs in (precise, rounded))
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype and np.array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("implementation", ["jnp", "ffi"])
def test_padded_columns_and_ignored_rows_take_no_part(implementation):
    """Whatever the padded rows of wte hold, they get no gradient; an ignored row gives nothing."""
    function = both("classifier", 0, implementation)
    (lnf, wte, targets, dlosses), dout = problem("classifier", 0, "float32")
    V = CASES["classifier"][0].static["V"]
    losses, (dlnf, dwte) = function([lnf, wte, targets, dlosses], dout)
    other = function([lnf, wte.at[V:].set(100.0), targets, dlosses], dout)
    assert np.array_equal(losses, other[0]) and np.array_equal(dlnf, other[1][0])
    assert not np.any(dwte[V:])
    ignored = np.asarray(targets) < 0
    assert ignored.any() and not np.any(np.asarray(losses)[ignored])
    assert not np.any(np.asarray(dlnf)[ignored])
    nothing = function([lnf, wte, jnp.full_like(targets, -1), dlosses], dout)
    assert not any(np.any(x) for x in jax.tree.leaves(nothing))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("implementation", ["jnp", "ffi"])
@pytest.mark.parametrize("number", [0, 3])
def test_losses_without_a_gradient_are_the_losses(implementation, number, dtype):
    static = CASES["classifier"][number].static
    (lnf, wte, targets, dlosses), _ = problem("classifier", number, dtype)
    forward = jax.jit(partial(ops.TABLE["classifier"][implementation].forward, **static))
    losses, saved = forward(lnf, wte, targets, None)
    assert saved is None
    wanted, _ = forward(lnf, wte, targets, dlosses)
    np.testing.assert_allclose(losses, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("implementation", ["jnp", "ffi"])
@pytest.mark.parametrize("number", [0, 4, 6])  # the last is large enough to make it by the tile
def test_mlp_computes_again_what_was_not_kept(implementation, number, dtype):
    op = ops.TABLE["mlp"][implementation]
    forward, backward = jax.jit(op.forward, static_argnames="keep"), jax.jit(op.backward)
    inputs, dout = problem("mlp", number, dtype)
    out, saved = forward(*inputs)
    wanted = backward(saved, dout, *inputs)
    without, nothing = forward(*inputs, keep=False)
    np.testing.assert_array_equal(without, out)
    for less in (saved._replace(fch_gelu=None), nothing._replace(fch=None, fch_gelu=None)):
        for grad, same in zip(backward(less, dout, *inputs), wanted, strict=True):
            reference = np.asarray(same, np.float64)
            rounding = float(jnp.finfo(grad.dtype).eps) * np.max(np.abs(reference))
            assert error(grad, reference) <= 4 * rounding
