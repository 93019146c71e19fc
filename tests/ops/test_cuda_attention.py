"""The CUDA kernels of attention, run by the emulator, against numpy in float64.

A kernel may be at most twice as far from the exact result as jnp in the kernel's dtype is (plus one
rounding), whatever the order of its threads; a deterministic one gives the same bits in each.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmc_jax import ffi, ops
from llmc_jax.config import BadInput
from llmc_jax.ops.attention import JNP
from llmc_jax.ops.op import run_kernel
from tests.ops import emulator

# (B, T, NH, HS): T on both sides of a tile of 32, 64 and 128 rows.
SIZES = [
    (1, 1, 2, 64),
    (2, 63, 1, 64),
    (1, 64, 1, 128),
    (1, 65, 3, 64),
    (1, 130, 1, 128),
    (1, 200, 2, 64),
]
PLAIN = [(2, 5, 3, 4), (1, 1, 1, 7), (1, 65, 2, 16), (1, 33, 1, 128), (1, 100, 1, 64)]
CASES = [(*size, dtype, 1) for size in SIZES for dtype in ("bfloat16", "float16")]
CASES += [(*size, "float32", 1) for size in PLAIN]
# Scores in the hundreds, whose exponentials no float32 holds.
CASES += [
    (1, 130, 1, 64, "bfloat16", 8),
    (1, 130, 1, 128, "bfloat16", 8),
    (1, 65, 1, 64, "float32", 8),
]


@functools.cache
def problem(B, T, NH, HS, dtype, deviation):
    """qkv and dout, numbers that each dtype has."""
    rng = np.random.default_rng(T)
    qkv = rng.normal(size=(B, T, 3, NH * HS))
    qkv[:, :, :2] *= deviation
    arrays = qkv.reshape(B, T, -1), rng.normal(size=(B, T, NH * HS))
    return [jnp.asarray(x, jnp.bfloat16).astype(dtype) for x in arrays]


@functools.cache
def exact(*case):
    """out, lse and dqkv by the definition, in float64."""
    B, T, NH, HS, *_ = case
    qkv, dout = (np.asarray(x, np.float64) for x in problem(*case))
    q, k, v = qkv.reshape(B, T, 3, NH, HS).transpose(2, 0, 3, 1, 4)
    dout = dout.reshape(B, T, NH, HS).transpose(0, 2, 1, 3)
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(HS)
    scores[..., np.triu_indices(T, 1)[0], np.triu_indices(T, 1)[1]] = -np.inf
    largest = scores.max(-1, keepdims=True)
    p = np.exp(scores - largest)
    lse = largest[..., 0] + np.log(p.sum(-1))
    p /= p.sum(-1, keepdims=True)
    dp = dout @ v.swapaxes(-1, -2)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) / np.sqrt(HS)
    dqkv = np.stack([ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ dout])
    out = (p @ v).transpose(0, 2, 1, 3).reshape(B, T, -1)
    return out, lse, dqkv.transpose(1, 3, 0, 2, 4).reshape(B, T, -1)


@functools.cache
def compiled(op, NH):
    def forward_and_backward(qkv, dout):
        out, saved = op.forward(qkv, NH=NH)
        return out, saved.lse, *op.backward(saved, dout, qkv, NH=NH)

    return jax.jit(forward_and_backward)


def run(op, case):
    """out, lse, dqkv."""
    results = compiled(op, case[2])(*problem(*case))
    return [np.asarray(x, np.float64) for x in results]


@functools.cache
def tolerances(*case):
    eps = float(jnp.finfo(case[4]).eps)
    roundings = eps, 4 * float(jnp.finfo(jnp.float32).eps), eps  # lse is float32 in each
    return [
        2 * np.max(np.abs(naive - wanted)) + rounding * np.max(np.abs(wanted))
        for naive, wanted, rounding in zip(run(JNP, case), exact(*case), roundings, strict=True)
    ]


def check(results, case):
    for got, wanted, tolerance in zip(results, exact(*case), tolerances(*case), strict=True):
        assert np.max(np.abs(got - wanted)) <= tolerance


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention(case):
    atomic, deterministic = (
        ops.implementation("attention", name) for name in ("emulated", "emulated_deterministic")
    )
    bits = []
    for schedule in emulator.SCHEDULES:
        with emulator.machine(schedule, architecture=80):
            check(run(atomic, case), case)
            bits.append(run(deterministic, case))
    check(bits[0], case)
    for again in bits[1:]:
        jax.tree.map(np.testing.assert_array_equal, bits[0], again)


@pytest.mark.parametrize(
    ("HS", "dtype", "accepted"),
    [(80, "bfloat16", "64 or 128 in bfloat16"), (136, "float32", "at most 128 in float32")],
)
def test_head_sizes_without_a_kernel_are_refused(HS, dtype, accepted):
    """In a sentence before anything is compiled, and by the handler."""
    qkv = jnp.zeros((1, 4, 3 * HS), dtype)
    with pytest.raises(BadInput, match=f"these have {HS} in {dtype}; attention=jnp takes any"):
        ops.implementation("attention", "emulated").forward(qkv, NH=1)
    results = (jnp.zeros((1, 4, HS), dtype), jnp.zeros((1, 1, 4)))
    refusal = rf"(?s)INVALID_ARGUMENT.*{HS}.*{accepted}"
    with emulator.machine(), pytest.raises(jax.errors.JaxRuntimeError, match=refusal):
        jax.block_until_ready(run_kernel("llmc_cuda_attention_forward", results, qkv, NH=1))


def test_auto_takes_another_attention_for_other_heads(monkeypatch):
    monkeypatch.setattr(ffi, "_load", lambda library: ("", None))
    assert ops.select("auto", "gpu", 64)[1]["attention"] == "cuda"
    assert ops.select("auto", "gpu", 96)[1]["attention"] == "jnp"
    assert ops.select("auto,attention=cudnn", "gpu", 96)[1]["attention"] == "cudnn"
