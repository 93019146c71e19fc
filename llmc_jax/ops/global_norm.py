"""L2 norm of all gradients together (llm.c global_norm.cuh)."""

import jax
import jax.numpy as jnp

from llmc_jax.ops.factors import arrays_of_each, multiplied
from llmc_jax.ops.op import Cost, accumulation_dtype, run_kernel, size


def global_norm(grads):
    """sqrt of the sum of squares over all leaves of `grads`, a float32 scalar.

    Leaves may be bfloat16, their squares are added up in float32; or Factors.
    """
    return jnp.sqrt(
        sum(
            jnp.sum(jnp.square(g.astype(accumulation_dtype(g.dtype))))
            for g in jax.tree.leaves(multiplied(grads))
        )
    )


def native_global_norm(grads):
    """`global_norm` as one kernel over all leaves, which does not multiply what is in factors."""
    norm = jax.eval_shape(global_norm, grads)
    return run_kernel("llmc_global_norm", norm, grads, arrays=arrays_of_each(grads))


PARTIALS = 512  # kNormPartials of ffi/cuda/kernels.h


def cuda_global_norm(grads):
    """`global_norm` as one kernel over all leaves, with room for its partial sums."""
    grads = multiplied(grads)
    results = (jax.eval_shape(global_norm, grads), jax.ShapeDtypeStruct((PARTIALS,), jnp.float32))
    return run_kernel("llmc_cuda_global_norm", results, grads)[0]


def cost(grads) -> Cost:
    """grads read."""
    return Cost(0, size(grads))


IMPLEMENTATIONS = {"jnp": global_norm, "ffi": native_global_norm, "cuda": cuda_global_norm}
