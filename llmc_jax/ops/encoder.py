"""Token and position embedding (llm.c encoder.cuh)."""

import jax.numpy as jnp

from llmc_jax.ops.op import Op, accumulation_dtype


def forward(inp, wte, wpe):
    """out[b,t] = wte[inp[b,t]] + wpe[t]; inp (B,T) int32, wte (Vp,C), wpe (maxT,C), out (B,T,C)."""
    T = inp.shape[1]
    return wte[inp] + wpe[None, :T], ()


def backward(saved, dout, inp, wte, wpe):
    """dwte[v] = sum of dout[b,t] over inp[b,t] == v; dwpe[t] = sum of dout[b,t] over b.

    dout (B,T,C); dwte (Vp,C) and dwpe (maxT,C) in the accumulation dtype.
    """
    T = inp.shape[1]
    dout = dout.astype(accumulation_dtype(dout.dtype))
    dwte = jnp.zeros(wte.shape, dout.dtype).at[inp].add(dout)
    dwpe = jnp.zeros(wpe.shape, dout.dtype).at[:T].set(jnp.sum(dout, axis=0))
    return dwte, dwpe


JNP = Op(forward, backward)
IMPLEMENTATIONS = {"jnp": JNP}
