"""The contract of an op, and how a native kernel fulfils it.

    forward(*inputs, **static)               -> (out, saved)
    backward(saved, dout, *inputs, **static) -> tuple, a gradient for each differentiable input

`saved` is a NamedTuple of what forward computed and backward needs, () if nothing. Inputs are
passed again, not hidden in `saved`, so the model shows which tensor stays alive. Gradients of
activations and of the weights of linear layers have the activation's dtype, to which their sums are
rounded once: as llm.c's, and as autodiff's of weights that were rounded to that dtype. Gradients of
other parameters are in the accumulation dtype (float32, or float64 for float64 inputs): of vectors,
which are few numbers, and of the embeddings, to which several passes add. `out` may be a tuple, and
then `dout` is one.
Where the backward of encoder and residual_layernorm takes other inputs, its docstring says so.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from llmc_jax import ffi


class Op(NamedTuple):
    """One implementation of an op: see the module's docstring.

    rounds_weights: whether it takes float32 weights beside activations of another dtype and rounds
    them as it reads them, so that no copy of the weights in that dtype need exist.
    backward_in_factors: `backward`, but gradients of weights are left in their factors
    (factors.py); None where there is no such thing.
    """

    forward: Callable
    backward: Callable
    rounds_weights: bool = False
    backward_in_factors: Callable | None = None

    def in_factors(self) -> "Op":
        """The op with that backward, where it has one."""
        return self._replace(backward=self.backward_in_factors or self.backward)


class Cost(NamedTuple):
    """The least that a pass has to do, whoever implements it: each file's `cost` says it of
    (forward, backward), for inputs of which only shape and dtype are looked at."""

    flop: float  # of matrix products
    bytes: float  # each input read once, each output written once


def size(*trees) -> int:
    """Bytes of arrays, or of trees of them."""
    return sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(trees))


def native(name: str, like: Op, rounds_weights: bool = False) -> Op:
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
        rounds_weights,
    )


def named(name: str, op: Op | Callable) -> Op | Callable:
    """`op`, whose instructions say of themselves that they are `name`'s.

    So a profile reads like the model: block3/attention.backward. It changes no instruction.
    """
    if not isinstance(op, Op):  # an update rule or a reduction: one function
        return jax.named_call(op, name=name)

    def of(fn, way):
        return fn and jax.named_call(fn, name=f"{name}.{way}")

    return op._replace(
        forward=of(op.forward, "forward"),
        backward=of(op.backward, "backward"),
        backward_in_factors=of(op.backward_in_factors, "backward"),
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


def after(x, y):
    """x, to be had once y has been computed.

    For what is computed again in backward, or else XLA takes forward's result for it and keeps
    that, or computes it again in forward. (lax.optimization_barrier prevents the first only: on
    the CPU it is gone when instructions are put in order.) The condition is never true, but XLA
    does not know.
    """
    number = lax.index_in_dim(y.reshape(-1), 0, keepdims=False)
    return jnp.where(lax.is_finite(number) & (number != number), 0, x)


def uninitialized(like, *, when) -> list[jax.Array]:
    """Arrays of the shapes and dtypes of `like` that hold anything, made once `when` has been."""
    return list(ffi.call("llmc_uninitialized", list(like))(when)) if like else []
