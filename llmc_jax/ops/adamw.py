"""AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101; llm.c adamw.cuh)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from llmc_jax.ops.factors import arrays_of_each, multiplied
from llmc_jax.ops.op import Cost, accumulation_dtype, run_kernel, size


class Hyper(NamedTuple):
    """What all tensors of a step share; scalars, lr and scale on the device."""

    lr: Array  # learning rate of this step
    scale: Array  # factor on the gradients (clipping); not finite: no update
    step: Array  # int32, 1 for the first update
    beta1: float
    beta2: float
    eps: float


def update(params, grads, m, v, hyper: Hyper, *, weight_decay):
    """param -= lr * (m_hat / (sqrt(v_hat) + eps) + weight_decay * param), on scale * grad.

    params, grads, m, v are trees of one structure with float32 leaves, those of grads may be
    bfloat16 or Factors; weight_decay is one of Python floats (0.0: no decay); returns
    (params, m, v). m and v are the moving averages of the gradient and of its square, m_hat and
    v_hat those without their bias to 0. Where hyper.scale is not finite, params, m and v are
    returned as they came, whatever grads hold.

    params may be bfloat16, for want of memory for a float32 copy: then their new values are
    rounded up or down by chance, with the probabilities that keep the mean what it was.
    """
    structure, grads = jax.tree.structure(params), multiplied(grads)
    leaves = zip(*map(jax.tree.leaves, (params, grads, m, v, weight_decay)), strict=True)
    updated = [_update(*leaf, hyper, number) for number, leaf in enumerate(leaves)]
    return tuple(structure.unflatten(tree) for tree in zip(*updated, strict=True))


def _update(param, grad, m, v, weight_decay, hyper, number):
    """`update` of tensor `number`."""
    lr, scale, step, beta1, beta2, eps = hyper

    def unless_skipped(new, old):
        return jnp.where(jnp.isfinite(scale), new, old)

    grad = grad * scale
    # The new parameter is computed from the moments as they are returned: from anything else XLA
    # would compute them a second time, out of copies of the old ones.
    m = unless_skipped(beta1 * m + (1 - beta1) * grad, m)
    v = unless_skipped(beta2 * v + (1 - beta2) * grad * grad, v)
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    wide = param.astype(accumulation_dtype(param.dtype))
    new_param = wide - lr * (m_hat / (jnp.sqrt(v_hat) + eps) + weight_decay * wide)
    if param.dtype == jnp.bfloat16:
        new_param = _round_by_chance(new_param, _scramble(_scramble(step) + jnp.uint32(number)))
    return unless_skipped(new_param, param), m, v


def _round_by_chance(x, seed):
    """float32 x as bfloat16: up where what is cut off and a random number have a carry."""
    index = lax.iota(jnp.uint32, x.size).reshape(x.shape)
    bits = lax.bitcast_convert_type(x, jnp.uint32) + (_scramble(index + seed) & 0xFFFF)
    rounded = lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isnan(x), x, rounded).astype(jnp.bfloat16)


def _scramble(x):
    """The finaliser of MurmurHash3 (Appleby 2011): bits that look random, and are always the same
    for the same step, tensor and element, so that a run can be repeated."""
    x = x.astype(jnp.uint32)
    x = (x ^ x >> 16) * jnp.uint32(0x85EBCA6B)
    x = (x ^ x >> 13) * jnp.uint32(0xC2B2AE35)
    return x ^ x >> 16


def native_update(params, grads, m, v, hyper: Hyper, *, weight_decay):
    """`update` as a kernel, which multiplies what is in factors weight by weight."""
    static = dict(weight_decay=weight_decay, arrays=arrays_of_each(grads))
    return _run("llmc_adamw", params, grads, m, v, hyper, **static)


def cuda_update(params, grads, m, v, hyper: Hyper, *, weight_decay):
    """`update` as a kernel."""
    grads = multiplied(grads)
    return _run("llmc_cuda_adamw", params, grads, m, v, hyper, weight_decay=weight_decay)


def _run(target: str, params, grads, m, v, hyper: Hyper, *, weight_decay, **static):
    """One kernel over all tensors, which writes params, m and v in their places."""
    n, of_grads = len(jax.tree.leaves(params)), len(jax.tree.leaves(grads))
    scalars = 3  # before the tensors
    aliases = {scalars + i: i for i in range(n)}  # params
    aliases |= {scalars + n + of_grads + i: n + i for i in range(2 * n)}  # m, v
    lr, scale, step, beta1, beta2, eps = hyper
    return run_kernel(
        target,
        jax.eval_shape(lambda *trees: trees, params, m, v),
        jnp.float32(lr), jnp.float32(scale), jnp.int32(step), params, grads, m, v,
        aliases=aliases,
        weight_decay=tuple(jax.tree.leaves(weight_decay)), beta1=beta1, beta2=beta2, eps=eps,
        **static,
    )  # fmt: skip


def cost(grads) -> Cost:
    """param, m and v read and written in float32, grads read."""
    leaves = jax.tree.leaves(grads)
    return Cost(0, 24 * sum(math.prod(g.shape) for g in leaves) + size(*leaves))


IMPLEMENTATIONS = {
    "jnp": update,
    "ffi": native_update,
    "cuda": cuda_update,
}
