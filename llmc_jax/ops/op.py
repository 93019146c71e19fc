"""The contract of an op, and how a native kernel fulfils it.

    forward(*inputs, **static)               -> (out, saved)
    backward(saved, dout, *inputs, **static) -> tuple, a gradient for each differentiable input

`saved` is a NamedTuple of what forward computed and backward needs, () if nothing. Inputs are
passed again, not hidden in `saved`, so the model shows which tensor stays alive. Gradients of
activations have the activation's dtype; gradients of parameters are in the accumulation dtype
(float32, or float64 for float64 inputs).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from llmc_jax import ffi


class Op(NamedTuple):
    """One implementation of an op: see the module's docstring."""

    forward: Callable
    backward: Callable


def native(name: str, like: Op) -> Op:
    """The kernels llmc_<name>_forward and llmc_<name>_backward of the loaded library.

    Arguments, result shapes and result dtypes are those of `like`; the kernel gets the
    arguments flattened in Python's order (saved, dout, inputs), then the results, then the
    static arguments as attributes.
    """

    def kernel(target, fn):
        def call(*args, **static):
            results = jax.eval_shape(partial(fn, **static), *args)
            return run_kernel(target, results, *args, **static)

        return call

    return Op(
        kernel(f"llmc_{name}_forward", like.forward),
        kernel(f"llmc_{name}_backward", like.backward),
    )


def run_kernel(target: str, results, *args, aliases: dict[int, int] | None = None, **static):
    """Run the kernel `target` on the leaves of `args`; its results, in the tree `results`.

    results: tree of shapes and dtypes. aliases: index of an argument -> index of the result
    that is written over it.
    """
    shapes, tree = jax.tree.flatten(results)
    call = ffi.call(target, shapes, aliases)
    return tree.unflatten(call(*jax.tree.leaves(args), **static))


def accumulation_dtype(dtype) -> jnp.dtype:
    """The dtype sums are made in: float32 for bfloat16 and float32, float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)
