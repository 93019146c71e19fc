"""GELU in its tanh form (Hendrycks & Gimpel 2016, arXiv:1606.08415; llm.c gelu.cuh).

A part of mlp.py and no op to choose: nothing else uses it.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from llmc_jax.ops.op import accumulation_dtype, run_kernel

SCALE = math.sqrt(2 / math.pi)
CUBIC = 0.044715


def forward(inp):
    """out = inp/2 * (1 + tanh(SCALE * (inp + CUBIC * inp^3))); inp, out (B,T,C)."""
    x = inp.astype(accumulation_dtype(inp.dtype))
    out = 0.5 * x * (1 + jnp.tanh(SCALE * (x + CUBIC * x * x * x)))
    return out.astype(inp.dtype), ()


def in_epilogue(inp):
    """`forward`, written as XLA must find it behind a product to have cuBLAS apply it to the sums
    before they leave the multiprocessor (the epilogue BIAS_GELU_AUX, which writes inp too).

    That is one pass over memory less: of d12's step on an H200 3 %. Where XLA does not find it, it
    is a pass of its own, whose constants are rounded to inp's type.
    """
    return inp * (0.5 * (1 + jnp.tanh(SCALE * (inp + CUBIC * (inp * (inp * inp))))))


def backward(saved, dout, inp):
    """dinp = dout * ((1 + tanh u)/2 + inp/2 * (1 - tanh(u)^2) * u'), u as in forward."""
    x, dy = (a.astype(accumulation_dtype(inp.dtype)) for a in (inp, dout))
    tanh = jnp.tanh(SCALE * (x + CUBIC * x * x * x))
    du = SCALE * (1 + 3 * CUBIC * x * x)
    dinp = dy * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * du)
    return (dinp.astype(inp.dtype),)


BLOCKS = 308  # with three for a row of GPT-2's 3072 channels, 7 on each SM of an H100


def cuda_backward(dout, inp, *, again: bool):
    """(dinp, dbias, out) as a kernel: dbias = sum_BT(dinp) in float32, out that of `forward`.

    again: whether out is wanted, which the kernel has at hand; else it is None.
    """
    C = inp.shape[-1]
    float32 = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    like_inp = jax.ShapeDtypeStruct(inp.shape, inp.dtype)
    scratch = float32((min(inp.size // C, BLOCKS), C))
    results = (like_inp, float32((C,)), scratch, like_inp if again else None)
    dinp, dbias, _, out = run_kernel("llmc_cuda_gelu_backward", results, dout, inp)
    return dinp, dbias, out
