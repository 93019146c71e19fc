"""Layer normalisation over the channels (Ba et al. 2016, arXiv:1607.06450; llm.c layernorm.cuh)."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from llmc_jax.ops.op import Cost, Op, accumulation_dtype, after, native, run_kernel, size


class Saved(NamedTuple):
    mean: Array  # (B, T) float32
    rstd: Array  # (B, T) float32, 1 / standard deviation


def forward(inp, weight, bias, *, eps):
    """out = norm * weight + bias, norm = (inp - mean) * rstd.

    inp, out (B,T,C); weight, bias (C,). Statistics are computed in float32.
    """
    x = inp.astype(accumulation_dtype(inp.dtype))
    mean = jnp.mean(x, axis=-1)
    centered = x - mean[..., None]
    rstd = lax.rsqrt(jnp.mean(jnp.square(centered), axis=-1) + eps)
    out = centered * rstd[..., None] * weight[None, None] + bias[None, None]
    return out.astype(inp.dtype), Saved(mean, rstd)


def backward(saved, dout, inp, weight, bias, *, eps):
    """dinp = rstd * (dnorm - mean_C(dnorm) - norm * mean_C(dnorm * norm)), dnorm = dout * weight.

    dout, dinp (B,T,C); dweight = sum_BT(dout * norm) and dbias = sum_BT(dout) are (C,).
    """
    mean, rstd = saved
    rstd = after(rstd, dout)  # or XLA would keep forward's norm, in float32
    x, dy = (a.astype(accumulation_dtype(inp.dtype)) for a in (inp, dout))
    norm = (x - mean[..., None]) * rstd[..., None]
    dnorm = dy * weight[None, None]
    dnorm_mean = jnp.mean(dnorm, axis=-1, keepdims=True)
    dnorm_norm_mean = jnp.mean(dnorm * norm, axis=-1, keepdims=True)
    dinp = rstd[..., None] * (dnorm - dnorm_mean - norm * dnorm_norm_mean)
    return dinp.astype(inp.dtype), jnp.sum(dy * norm, axis=(0, 1)), jnp.sum(dy, axis=(0, 1))


BLOCKS = 1056  # 8 on each SM of an H100


def partials(N: int, C: int):
    """Room for a part of dweight and dbias of each block of the CUDA kernels."""
    return jax.ShapeDtypeStruct((min(N, BLOCKS), 2, C), jnp.float32)


def cuda_backward(saved, dout, inp, weight, bias, *, eps):
    """`backward` as a kernel that reads dout and inp once."""
    gradients = jax.eval_shape(partial(backward, eps=eps), saved, dout, inp, weight, bias)
    results = (gradients, partials(saved.mean.size, inp.shape[-1]))
    return run_kernel("llmc_cuda_layernorm_backward", results, saved, dout, inp, weight)[0]


def cost(inp, weight, bias, *, eps) -> tuple[Cost, Cost]:
    return Cost(0, size(inp, inp)), Cost(0, size(inp, inp, inp))


JNP = Op(forward, backward)
IMPLEMENTATIONS = {
    "jnp": JNP,
    "ffi": native("layernorm", like=JNP),
    "cuda": Op(forward, cuda_backward),
}
