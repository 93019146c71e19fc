"""AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101; llm.c adamw.cuh)."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Hyper(NamedTuple):
    """What all tensors of a step share; scalars, lr and scale on the device."""

    lr: Array  # learning rate of this step
    scale: Array  # factor on the gradients (clipping)
    step: Array  # int32, 1 for the first update
    beta1: float
    beta2: float
    eps: float


def update(param, grad, m, v, hyper: Hyper, *, weight_decay: float):
    """param -= lr * (m_hat / (sqrt(v_hat) + eps) + weight_decay * param), on scale * grad.

    param, grad, m, v are float32 of one shape; returns (param, m, v). m and v are the moving
    averages of the gradient and of its square, m_hat and v_hat those without their bias to 0.
    """
    lr, scale, step, beta1, beta2, eps = hyper
    grad = grad * scale
    m = beta1 * m + (1 - beta1) * grad
    v = beta2 * v + (1 - beta2) * grad * grad
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    return param - lr * (m_hat / (jnp.sqrt(v_hat) + eps) + weight_decay * param), m, v


IMPLEMENTATIONS = {"jnp": update}
