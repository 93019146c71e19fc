"""The linear layer (llm.c matmul.cuh). Weights are (out, in), as llm.c stores them."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from llmc_jax.ops.factors import Factors
from llmc_jax.ops.op import Cost, Op, accumulation_dtype, native, run_kernel, size


def dot(a, b, contract: tuple[int, int]):
    """Product of the matrices a and b over the dimensions `contract`, in the accumulation dtype.

    Naming the result's dtype keeps bfloat16 products on the matrix units of CPU and GPU and
    their sums in float32.
    """
    return _dot(a, b, contract, accumulation_dtype(a.dtype))


def rounded_dot(a, b, contract: tuple[int, int]):
    """The same in the dtype of a: for GPUs, whose library sums in float32 and rounds as it writes.

    Of `dot` and a conversion XLA makes two passes there, with all of the product in float32 in
    between. (On a CPU XLA would not take this to its matrix units.)
    """
    return _dot(a, b, contract, a.dtype)


def _dot(a, b, contract, dtype):
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(a, b, dimensions, preferred_element_type=dtype)


def rows(x):
    """(B,T,C) as (B*T,C)."""
    return x.reshape(-1, x.shape[-1])


def forward(inp, weight, bias):
    """out = inp @ weight.T + bias; inp (B,T,C), weight (OC,C), bias (OC,), out (B,T,OC)."""
    out = dot(rows(inp), weight.astype(inp.dtype), (1, 1)) + bias[None]
    return out.astype(inp.dtype).reshape(*inp.shape[:-1], -1), ()


def backward(saved, dout, inp, weight, bias):
    """dinp = dout @ weight, dweight = dout.T @ inp, dbias = sum_BT(dout).

    dout (B,T,OC), dinp (B,T,C); dweight (OC,C) in the dtype of dout, dbias (OC,) in the
    accumulation dtype.
    """
    return input_gradient(dout, weight), weight_gradient(dout, inp), bias_gradient(dout)


def input_gradient(dout, weight, dot=dot):
    dinp = dot(rows(dout), weight.astype(dout.dtype), (1, 0)).astype(dout.dtype)
    return dinp.reshape(*dout.shape[:-1], -1)


def weight_gradient(dout, inp, dot=dot):
    return dot(rows(dout), rows(inp), (0, 0)).astype(dout.dtype)


def bias_gradient(dout):
    return jnp.sum(rows(dout).astype(accumulation_dtype(dout.dtype)), axis=0)


def rounded_forward(inp, weight, bias):
    """`forward` by rounded_dot; the bias is rounded too, for then XLA has the library add it."""
    out = rounded_dot(rows(inp), weight.astype(inp.dtype), (1, 1)) + bias[None].astype(inp.dtype)
    return out.reshape(*inp.shape[:-1], -1), ()


def rounded_backward(saved, dout, inp, weight, bias):
    """`backward` by rounded_dot."""
    dinp = input_gradient(dout, weight, rounded_dot)
    return dinp, weight_gradient(dout, inp, rounded_dot), bias_gradient(dout)


def native_backward_in_factors(saved, dout, inp, weight, bias):
    """`backward` as a kernel that leaves dweight out."""
    dinp, dweight, dbias = jax.eval_shape(backward, (), dout, inp, weight, bias)
    results = (dinp, left_out(dweight), dbias)
    dinp, _, dbias = run_kernel("llmc_matmul_backward", results, dout, inp, weight, bias)
    return dinp, Factors(dout, inp), dbias


def left_out(like) -> jax.ShapeDtypeStruct:
    """What stands for a tensor that a kernel is not to make, or is not given: one without rows."""
    return jax.ShapeDtypeStruct((0, *like.shape[1:]), like.dtype)


def cost(inp, weight, bias) -> tuple[Cost, Cost]:
    """One product forward, two of the same size backward."""
    N, (OC, C), itemsize = math.prod(inp.shape[:-1]), weight.shape, jnp.dtype(inp.dtype).itemsize
    out, dweight = N * OC * itemsize, OC * C * itemsize
    forward = Cost(2 * N * OC * C, size(inp, weight) + out)
    return forward, Cost(2 * forward.flop, size(inp, inp, weight) + out + dweight)


JNP = Op(forward, backward)
NATIVE = native("matmul", like=JNP, rounds_weights=True)
IMPLEMENTATIONS = {
    "jnp": JNP,
    "ffi": NATIVE._replace(backward_in_factors=native_backward_in_factors),
    "rounded": Op(rounded_forward, rounded_backward),
}
