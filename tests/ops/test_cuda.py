"""The CUDA kernels, run by the emulator, on every case, against jnp in float64.

A kernel may be at most twice as far from the float64 result as jnp in the kernel's dtype is (plus
one rounding), whatever the order of its threads.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmc_jax import ops
from llmc_jax.ops import classifier
from llmc_jax.ops.adamw import Hyper
from llmc_jax.ops.cases import CASES
from llmc_jax.ops.op import run_kernel
from tests.ops import emulator, test_ops

# Attention has a file of its own. Left out is what takes long and shows nothing new.
KERNELS = [
    (op, number)
    for op, cases in CASES.items()
    if op != "attention" and "cuda" in ops.TABLE[op]
    for number in range(len(cases))
    if (op, number) not in [("classifier", 5), ("classifier", 6)]
]


def run(op: str, number: int, dtype: str, schedule: int) -> list[np.ndarray]:
    """[outputs..., gradients...] of one case, emulated."""
    with emulator.machine(schedule):
        return list(map(np.asarray, test_ops.run(op, number, "cuda", dtype)))


def allowances(op: str, number: int, dtype: str) -> list[float]:
    """What each result may be further away from the exact one than rounding explains.

    Of the classifier in bfloat16: what rounding its logits does. The kernel is given them in the
    dtype of the activations, and jnp keeps them in float32.
    """
    if op != "classifier" or dtype != "bfloat16":
        return [0.0] * len(test_ops.exact(op, number))
    inputs = test_ops.problem(op, number, "float32")[0]
    lnf, wte, _, dlosses = (np.abs(np.asarray(x, np.float64)) for x in inputs)
    logits = np.asarray(classifier.logits(*inputs[:2]), np.float64)
    off = float(jnp.finfo(dtype).eps) * np.abs(logits).max()
    dlogits = off * dlosses.max()
    return [off, dlogits * wte.max(), dlogits * lnf.max()]


@pytest.mark.parametrize("dtype", test_ops.DTYPES)
@pytest.mark.parametrize(("op", "number"), KERNELS)
def test_kernel_is_as_close_as_jnp(op, number, dtype):
    """And the same bits in every order of threads."""
    results, *others = (run(op, number, dtype, schedule) for schedule in emulator.SCHEDULES)
    for other in others:
        assert all(map(np.array_equal, results, other))
    naive, exact = test_ops.naive(op, number, dtype), test_ops.exact(op, number)
    allowed = allowances(op, number, dtype)
    for result, same_dtype, reference, more in zip(results, naive, exact, allowed, strict=True):
        assert result.dtype == same_dtype.dtype and result.shape == same_dtype.shape
        error, error_of_jnp = (test_ops.error(x, reference) for x in (result, same_dtype))
        rounding = float(jnp.finfo(result.dtype).eps) * np.max(np.abs(reference))
        assert error <= 2 * error_of_jnp + rounding + more


@pytest.mark.parametrize("schedule", emulator.SCHEDULES)
def test_global_norm(schedule):
    rng = np.random.default_rng(0)
    sizes = [(1,), (3,), (5, 7), (1000,), (301, 67), *[(9,)] * 60]
    grads = [jnp.asarray(rng.normal(size=size), jnp.float32) for size in sizes]
    with emulator.machine(schedule):
        norm = jax.jit(ops.implementation("global_norm", "emulated"))(grads)
    reference = np.sqrt(sum(np.sum(np.asarray(g, np.float64) ** 2) for g in grads))
    np.testing.assert_allclose(norm, reference, rtol=1e-6)


@pytest.mark.parametrize("schedule", emulator.SCHEDULES)
def test_adamw_of_many_tensors(schedule):
    """More than a launch takes, with sizes that fill no chunk, and more chunks than blocks."""
    rng = np.random.default_rng(0)
    sizes = [(1,), (1023,), (2, 600), (1100, 1001), *[(5,)] * 70]
    params, grads, m, v = ([jnp.asarray(rng.random(s), jnp.float32) for s in sizes] for _ in "pgmv")
    hyper = Hyper(jnp.float32(1e-2), jnp.float32(0.5), jnp.int32(3), 0.9, 0.95, 1e-8)
    decay = [0.1 * (i % 2) for i in range(len(sizes))]
    update, wanted = (
        jax.jit(partial(ops.implementation("adamw", name), hyper=hyper, weight_decay=decay))
        for name in ("emulated", "jnp")
    )
    with emulator.machine(schedule):
        results = jax.block_until_ready(update(params, grads, m, v))
    references = jax.tree.leaves(wanted(params, grads, m, v))
    for result, reference in zip(jax.tree.leaves(results), references, strict=True):
        np.testing.assert_allclose(result, reference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("architecture", [80, 86])
def test_classifier_where_a_row_does_not_fit_in_shared_memory(architecture):
    wanted = run("classifier", 2, "float32", 0)
    with emulator.machine(architecture=architecture):
        results = test_ops.run("classifier", 2, "cuda", "float32")
    assert all(map(np.array_equal, results, wanted))


def test_classifier_writes_over_the_logits():
    """And XLA makes no copy of them for that."""
    emulator.library()
    case = CASES["classifier"][4]
    lowered = test_ops.both("classifier", 4, "cuda").lower(
        *test_ops.problem("classifier", 4, "float32")
    )
    (call,) = re.findall("custom_call @llmc_cuda_classifier_forward.*", lowered.as_text())
    assert "output_tuple_indices = [1], operand_index = 0" in call
    B, T = case.inputs[2].shape
    logits = rf"f32\[{B * T},{case.inputs[1].shape[0]}\]"
    compiled = lowered.compile().as_text()
    assert re.search(rf"{logits}.*custom-call", compiled)
    assert not re.search(rf"{logits}\S* copy\(", compiled)


def test_a_wrong_type_is_an_error_that_says_so():
    emulator.library()
    logits = jnp.zeros((4, 8), jnp.float16)
    targets = jnp.zeros((2, 2), jnp.int32)
    losses = jax.ShapeDtypeStruct((2, 2), jnp.float32)
    expected = "llmc_cuda_classifier_losses: logits is float16, expected float32 or bfloat16"
    with pytest.raises(jax.errors.JaxRuntimeError, match=expected):
        run_kernel("llmc_cuda_classifier_losses", losses, logits, targets, V=7).block_until_ready()


@pytest.mark.parametrize(("chunk", "dtype"), [(65, "float32"), (130, "bfloat16")])
def test_classifier_in_chunks_is_the_classifier(chunk, dtype):
    (lnf, wte, targets, dlosses), dout = test_ops.problem("classifier", 4, dtype)
    static = CASES["classifier"][4].static
    inputs = (lnf, wte, targets, dlosses)
    wanted, saved = jax.jit(partial(classifier.cuda_forward, **static))(*inputs)
    gradients = classifier.backward(saved, dout, *inputs, **static)
    chunked = jax.jit(
        partial(classifier.chunked_forward, classifier.cuda_forward, **static, chunk=chunk)
    )
    losses, saved = chunked(*inputs)
    np.testing.assert_allclose(losses, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(chunked(lnf, wte, targets, None)[0], wanted, rtol=1e-5, atol=1e-5)
    for result, reference in zip(saved, gradients, strict=True):
        reference = np.asarray(reference, np.float64)
        rounding = float(jnp.finfo(result.dtype).eps) * np.abs(reference).max()
        assert test_ops.error(result, reference) <= 8 * rounding


@pytest.mark.parametrize("dtype", test_ops.DTYPES)
def test_mlp_computes_again_what_was_not_kept(dtype):
    emulator.library()
    forward, backward = map(jax.jit, ops.TABLE["mlp"]["cuda"][:2])
    inputs, dout = test_ops.problem("mlp", 4, dtype)
    _, saved = forward(*inputs)
    wanted = backward(saved, dout, *inputs)
    for less in (saved._replace(fch_gelu=None), saved._replace(fch=None, fch_gelu=None)):
        for grad, same in zip(backward(less, dout, *inputs), wanted, strict=True):
            reference = np.asarray(same, np.float64)
            rounding = float(jnp.finfo(grad.dtype).eps) * np.max(np.abs(reference))
            assert test_ops.error(grad, reference) <= 4 * rounding
