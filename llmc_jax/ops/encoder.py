"""Token and position embedding (llm.c encoder.cuh)."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from llmc_jax.ops.op import Cost, Op, accumulation_dtype, run_kernel


def forward(inp, wte, wpe, *, dtype=None):
    """out[b,t] = wte[inp[b,t]] + wpe[t]; inp (B,T) int32, wte (Vp,C), wpe (maxT,C), out (B,T,C).

    dtype: that of out, to which both addends are rounded; None: that of wte.
    """
    T = inp.shape[1]
    dtype = dtype or wte.dtype
    return _rows(wte, inp).astype(dtype) + wpe[None, :T].astype(dtype), ()


def _rows(table, index):
    """table[index]; bfloat16 by its bits, or else XLA:CPU makes a float32 copy of the table."""
    if table.dtype != jnp.bfloat16:
        return table[index]
    bits = lax.bitcast_convert_type(table, jnp.uint16)[index]
    return lax.bitcast_convert_type(bits, table.dtype)


def backward(saved, dout, inp, dwte, wpe):
    """dwte[v] += sum of dout[b,t] over inp[b,t] == v; dwpe[t] = sum of dout[b,t] over b.

    dout (B,T,C); dwte (Vp,C) and dwpe (maxT,C) in the accumulation dtype.
    Deviates from the contract in op.py: in the place of wte, which it does not need, it takes
    wte's gradient so far (e.g. the head's) and returns the sum. So B*T rows are touched, and no
    (Vp,C) array is zeroed and added.
    """
    T = inp.shape[1]
    dout = dout.astype(accumulation_dtype(dout.dtype))
    dwpe = jnp.zeros(wpe.shape, dout.dtype).at[:T].set(jnp.sum(dout, axis=0))
    return dwte.at[inp].add(dout), dwpe


def native_forward(inp, wte, wpe, *, dtype=None):
    """`forward` as a kernel."""
    results = jax.eval_shape(partial(forward, dtype=dtype), inp, wte, wpe)
    return run_kernel("llmc_encoder_forward", results, inp, wte, wpe)


def native_backward(saved, dout, inp, dwte, wpe):
    """`backward` as a kernel that adds to dwte in its place."""
    inputs = (dout, inp, dwte, wpe)
    results = jax.eval_shape(partial(backward, saved), *inputs)
    return run_kernel("llmc_encoder_backward", results, *inputs, aliases={2: 0})


WINDOW = 32  # kEncoderWindow of ffi/cuda/kernels.h


def cuda_backward(saved, dout, inp, dwte, wpe):
    """`backward` as a kernel that adds the rows of dout in the order of their tokens.

    It adds to dwte in its place, and has room for the sums of tokens that more than one block adds.
    """
    N, C = inp.size, wpe.shape[1]
    rows = lax.iota(jnp.int32, N)
    # XLA sorts pairs by radix only where the keys are unsigned
    tokens, order = lax.sort((inp.reshape(N).astype(jnp.uint32), rows), num_keys=1)
    partials = jax.ShapeDtypeStruct((-(-N // WINDOW), 2, C), jnp.float32)
    results = (jax.eval_shape(partial(backward, saved), dout, inp, dwte, wpe), partials)
    inputs = (dout, tokens.astype(jnp.int32), order, dwte)
    return run_kernel("llmc_cuda_encoder_backward", results, *inputs, aliases={3: 0})[0]


def cost(inp, wte, wpe, *, dtype=None) -> tuple[Cost, Cost]:
    """A row of wte for each token, and of its float32 gradient so far, read and written."""
    rows = math.prod(inp.shape) * wte.shape[1]
    out = rows * jnp.dtype(dtype or wte.dtype).itemsize
    return Cost(0, 2 * out), Cost(0, out + 2 * 4 * rows)


JNP = Op(forward, backward)
IMPLEMENTATIONS = {
    "jnp": JNP,
    "ffi": Op(native_forward, native_backward, rounds_weights=True),
    "cuda": Op(forward, cuda_backward),
}
