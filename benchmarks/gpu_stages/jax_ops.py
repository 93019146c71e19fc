"""The package's ops as stages measure them: which implementations, on which inputs, which pass."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.gpu_stages import results
from llmc_jax import ffi, ops
from llmc_jax.ops.cases import Case
from llmc_jax.ops.op import accumulation_dtype


def kernels(op: str) -> list[str]:
    """The implementations of `op` on this platform that are no jnp, of all that there are."""
    return [name for name in ops.names(op, results.platform()) if name not in ("jnp", "ffi")]


def implementation(op: str, name: str):
    """Raises BadInput with the reason where `name` cannot run here."""
    library = ops.LIBRARY.get(name.partition("_")[0])
    if library:
        ffi.require(library, asked=name)
    return ops.implementation(op, name)


class Problem(NamedTuple):
    """What a pass is measured on."""

    inputs: list
    dout: object


def make_problem(op: str, case: Case, dtype, seed: int) -> Problem:
    """Random numbers made on the device; weights are small, as they are in a model, and targets
    are all there: an ignored one would be less work."""
    keys = jax.random.split(jax.random.key(seed), len(case.inputs) + 2)
    inputs = [_make(spec, dtype, key) for spec, key in zip(case.inputs, keys, strict=False)]
    if case.dout is not None:
        return Problem(inputs, inputs[case.dout])
    out = jax.eval_shape(partial(implementation(op, "jnp").forward, **case.static), *inputs)[0]
    leaves, tree = jax.tree.flatten(out)
    douts = jax.random.split(keys[-1], len(leaves))
    return Problem(
        inputs,
        tree.unflatten(
            jax.random.normal(key, x.shape, x.dtype) for key, x in zip(douts, leaves, strict=True)
        ),
    )


def _make(spec, dtype, key):
    if spec.kind in ("tokens", "targets"):
        return jax.random.randint(key, spec.shape, 0, spec.below, jnp.int32)
    if spec.kind == "constant":
        return jnp.full(spec.shape, 1 / max(1, spec.shape[0] * spec.shape[-1]), jnp.float32)
    scale = 0.02 if spec.kind == "tensor" and len(spec.shape) == 2 else 1
    wanted = dtype if spec.kind == "tensor" else accumulation_dtype(dtype)
    return (scale * jax.random.normal(key, spec.shape, jnp.float32)).astype(wanted)


def forward(op: str, name: str, case: Case):
    """A compiled function of the inputs: (out, saved)."""
    return jax.jit(partial(implementation(op, name).forward, **case.static))


def backward(op: str, name: str, case: Case):
    """A compiled function of a list [saved, dout, inputs...]. Where it adds to a gradient so far
    it does so in its place, and the list has the sum afterwards."""
    in_place = None if case.so_far is None else 2 + case.so_far
    run = jax.jit(
        partial(implementation(op, name).backward, **case.static),
        donate_argnums=() if in_place is None else (in_place,),
    )

    def call(args: list):
        result = run(*args)
        if in_place is not None:
            args[in_place] = result[0]
            return result[1:]
        return result

    return call


def backward_arguments(op: str, name: str, case: Case, problem: Problem) -> list:
    out, saved = forward(op, name, case)(*problem.inputs)
    before = list(case.backward_inputs(problem.inputs, out))
    if case.so_far is not None:
        before[case.so_far] = jnp.copy(before[case.so_far])
    return [saved, problem.dout, *before]


def both(op: str, name: str, case: Case):
    """A compiled function of (inputs, dout): (out, gradients)."""
    chosen = implementation(op, name)

    def forward_and_backward(inputs, dout):
        out, saved = chosen.forward(*inputs, **case.static)
        backward_inputs = case.backward_inputs(inputs, out)
        return out, chosen.backward(saved, dout, *backward_inputs, **case.static)

    return jax.jit(forward_and_backward)
