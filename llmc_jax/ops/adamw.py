"""AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101; llm.c adamw.cuh)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from llmc_jax.ops.op import run_kernel


class Hyper(NamedTuple):
    """What all tensors of a step share; scalars, lr and scale on the device."""

    lr: Array  # learning rate of this step
    scale: Array  # factor on the gradients (clipping)
    step: Array  # int32, 1 for the first update
    beta1: float
    beta2: float
    eps: float


def update(params, grads, m, v, hyper: Hyper, *, weight_decay):
    """param -= lr * (m_hat / (sqrt(v_hat) + eps) + weight_decay * param), on scale * grad.

    params, grads, m, v are trees of one structure with float32 leaves, weight_decay one of Python
    floats (0.0: no decay); returns (params, m, v). m and v are the moving averages of the
    gradient and of its square, m_hat and v_hat those without their bias to 0.
    """

    def update_leaf(param, grad, m, v, weight_decay):
        return _update(param, grad, m, v, hyper, weight_decay)

    updated = jax.tree.map(update_leaf, params, grads, m, v, weight_decay)
    return jax.tree.transpose(jax.tree.structure(params), jax.tree.structure((0, 0, 0)), updated)


def _update(param, grad, m, v, hyper, weight_decay):
    """`update` of one tensor."""
    lr, scale, step, beta1, beta2, eps = hyper
    grad = grad * scale
    m = beta1 * m + (1 - beta1) * grad
    v = beta2 * v + (1 - beta2) * grad * grad
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    return param - lr * (m_hat / (jnp.sqrt(v_hat) + eps) + weight_decay * param), m, v


def _kernel(target: str):
    """`update` as one kernel over all tensors, which writes params, m and v in their places."""

    def native_update(params, grads, m, v, hyper: Hyper, *, weight_decay):
        n = len(jax.tree.leaves(params))
        scalars = 3  # before the tensors
        aliases = {scalars + i: i for i in range(n)}  # params
        aliases |= {scalars + 2 * n + i: n + i for i in range(2 * n)}  # m, v
        lr, scale, step, beta1, beta2, eps = hyper
        return run_kernel(
            target,
            jax.eval_shape(lambda *trees: trees, params, m, v),
            jnp.float32(lr), jnp.float32(scale), jnp.int32(step), params, grads, m, v,
            aliases=aliases,
            weight_decay=tuple(jax.tree.leaves(weight_decay)), beta1=beta1, beta2=beta2, eps=eps,
        )  # fmt: skip

    return native_update


IMPLEMENTATIONS = {
    "jnp": update,
    "ffi": _kernel("llmc_adamw"),
    "cuda": _kernel("llmc_cuda_adamw"),
}
