"""GELU in its tanh form (Hendrycks & Gimpel 2016, arXiv:1606.08415; llm.c gelu.cuh).

A part of mlp.py and no op to choose: nothing else uses it.
"""

import math

import jax.numpy as jnp

from llmc_jax.ops.op import accumulation_dtype

SCALE = math.sqrt(2 / math.pi)
CUBIC = 0.044715


def forward(inp):
    """out = inp/2 * (1 + tanh(SCALE * (inp + CUBIC * inp^3))); inp, out (B,T,C)."""
    x = inp.astype(accumulation_dtype(inp.dtype))
    out = 0.5 * x * (1 + jnp.tanh(SCALE * (x + CUBIC * x * x * x)))
    return out.astype(inp.dtype), ()


def backward(saved, dout, inp):
    """dinp = dout * ((1 + tanh u)/2 + inp/2 * (1 - tanh(u)^2) * u'), u as in forward."""
    x, dy = (a.astype(accumulation_dtype(inp.dtype)) for a in (inp, dout))
    tanh = jnp.tanh(SCALE * (x + CUBIC * x * x * x))
    du = SCALE * (1 + 3 * CUBIC * x * x)
    dinp = dy * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * du)
    return (dinp.astype(inp.dtype),)
