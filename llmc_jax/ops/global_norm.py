"""L2 norm of all gradients together (llm.c global_norm.cuh)."""

import jax
import jax.numpy as jnp


def global_norm(grads):
    """sqrt of the sum of squares over all leaves of `grads`, a float32 scalar."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))


IMPLEMENTATIONS = {"jnp": global_norm}
