"""A residual connection and the layernorm behind it (llm.c fused_residual_forward5).

One op for both, so that an implementation reads and writes the residual stream once.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from llmc_jax.ops import layernorm
from llmc_jax.ops.op import Cost, Op, native, run_kernel, size


def forward(residual, branch, weight, bias, *, eps):
    """sum = residual + branch, out = layernorm(sum); returns ((sum, out), layernorm.Saved).

    residual, branch, sum, out (B,T,C), the sum rounded once to their dtype; weight, bias (C,).
    """
    # Backward sees the rounded sum, so out is to be of that: said twice, because XLA leaves out
    # the rounding of what it fuses.
    dtype = jnp.finfo(residual.dtype)
    sum = lax.reduce_precision(residual + branch, dtype.nexp, dtype.nmant)
    out, saved = layernorm.forward(sum, weight, bias, eps=eps)
    return (sum, out), saved


def backward(saved, dout, sum, weight, bias, *, eps):
    """dinp = dsum + layernorm's backward of dout_ln; dout = (dsum, dout_ln), all (B,T,C).

    Deviates from the contract in op.py: it takes forward's sum for the two addends, which nobody
    keeps, and dinp is the gradient of both. So it serves every layernorm of a residual stream,
    whoever made the sum. Returns (dinp, dweight, dbias), the last two (C,) float32.
    """
    dsum, dout_ln = dout
    dbranch, dweight, dbias = layernorm.backward(saved, dout_ln, sum, weight, bias, eps=eps)
    return dsum + dbranch, dweight, dbias


def cuda_backward(saved, dout, sum, weight, bias, *, eps):
    """`backward` as a kernel that reads dout and sum once."""
    gradients = jax.eval_shape(partial(backward, eps=eps), saved, dout, sum, weight, bias)
    results = (gradients, layernorm.partials(saved.mean.size, sum.shape[-1]))
    inputs = (saved, dout, sum, weight)
    return run_kernel("llmc_cuda_residual_layernorm_backward", results, *inputs)[0]


def cost(residual, branch, weight, bias, *, eps) -> tuple[Cost, Cost]:
    """Both addends, the sum and its layernorm; dsum, dout_ln, the sum and dinp."""
    return Cost(0, 4 * size(residual)), Cost(0, 4 * size(residual))


JNP = Op(forward, backward)
IMPLEMENTATIONS = {
    "jnp": JNP,
    "ffi": native("residual_layernorm", like=JNP),
    "cuda": Op(native("cuda_residual_layernorm", like=JNP).forward, cuda_backward),
}
