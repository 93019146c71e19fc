"""Programs that take XLA half the time to compile: references, and what is only planned.

They compute the same, but slower, and plan memory the same way.
"""

from functools import partial

import jax

OPTIONS = dict(xla_backend_optimization_level=0, xla_llvm_disable_expensive_passes=True)

jit = partial(jax.jit, compiler_options=OPTIONS)


def step(lowered, spec: str):
    """A lowered step with the ops `spec` compiled: quickly where XLA has much to compile in it."""
    return lowered.compile(compiler_options=OPTIONS if spec == "jnp" else None)
