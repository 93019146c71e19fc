"""One training step and one evaluation step, as each device runs them.

The functions know the name of the mesh axis they are mapped over, AXIS, and nothing else about
devices: parallel.py maps them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from llmc_jax.config import ModelConfig, TrainConfig
from llmc_jax.models import gpt2
from llmc_jax.models.gpt2 import Params
from llmc_jax.ops import Ops
from llmc_jax.ops.adamw import Hyper
from llmc_jax.training.schedules import learning_rate

AXIS = "data"


class TrainState(NamedTuple):
    """What a step changes; everything is float32 and the same on every device."""

    params: Params
    m: Params  # AdamW's first moment
    v: Params  # AdamW's second moment
    step: Array  # int32, number of updates made


class Metrics(NamedTuple):
    """Scalars of one step, left on the device until somebody reads them."""

    loss: Array  # mean over the step's tokens
    grad_norm: Array  # before clipping
    learning_rate: Array


def init_state(params: Params) -> TrainState:
    """The state before the first step: moments are 0."""
    zeros = jax.tree.map(jnp.zeros_like, params)
    return TrainState(params, zeros, jax.tree.map(jnp.copy, zeros), jnp.int32(0))


def train_step(
    state: TrainState, inputs, targets, *, ops: Ops, model: ModelConfig, cfg: TrainConfig
) -> tuple[TrainState, Metrics]:
    """AdamW on the mean gradient of A micro-batches on each device.

    inputs, targets (A,B,T) int32. Gradients are accumulated and averaged over devices in
    float32, then clipped by their global norm.
    """
    loss, grads = _accumulate(ops, state.params, inputs, targets, model, cfg)
    loss, grads = lax.pmean((loss, grads), AXIS)
    norm = ops.global_norm(grads)
    clip = cfg.grad_clip if cfg.grad_clip > 0 else jnp.inf
    hyper = Hyper(
        lr=learning_rate(state.step, cfg),
        scale=jnp.minimum(1, clip / norm),
        step=state.step + 1,
        beta1=cfg.adam_beta1,
        beta2=cfg.adam_beta2,
        eps=cfg.adam_eps,
    )

    def update(param, grad, m, v, matrix):
        return ops.adamw(param, grad, m, v, hyper, weight_decay=cfg.weight_decay * matrix)

    updated = jax.tree.map(update, state.params, grads, state.m, state.v, gpt2.MATRICES)
    params, m, v = jax.tree.transpose(
        jax.tree.structure(grads), jax.tree.structure((0, 0, 0)), updated
    )
    return TrainState(params, m, v, state.step + 1), Metrics(loss, norm, hyper.lr)


def eval_step(params: Params, inputs, targets, *, ops: Ops, model: ModelConfig, cfg: TrainConfig):
    """Mean loss over all devices' (B,T) targets, a float32 scalar."""
    params = gpt2.cast(params, cfg.dtype)
    dlosses = jnp.zeros(targets.shape, jnp.float32)
    losses, _ = gpt2.forward(ops, params, inputs, targets, dlosses, cfg=model)
    return lax.pmean(jnp.mean(losses), AXIS)


def _accumulate(ops, params, inputs, targets, model, cfg):
    """Mean loss and gradients over this device's micro-batches; inputs, targets (A,B,T)."""
    # Each device's gradients are its own until pmean: JAX's type system is told so here, and
    # then refuses a step that forgets to reduce them.
    params = _varying(gpt2.cast(params, cfg.dtype))
    dlosses = jnp.full(inputs.shape[1:], 1 / inputs.size, jnp.float32)

    def micro_step(inputs, targets):
        losses, acts = gpt2.forward(
            ops, params, inputs, targets, dlosses, cfg=model, recompute=cfg.recompute
        )
        grads = gpt2.backward(ops, params, acts, dlosses, inputs, targets, cfg=model)
        return jnp.sum(losses * dlosses), grads

    if inputs.shape[0] == 1:  # no accumulator: saves a pass over all gradients
        return micro_step(inputs[0], targets[0])

    def add(total, batch):
        return jax.tree.map(jnp.add, total, micro_step(*batch)), None

    zero = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    total, _ = lax.scan(add, _varying((jnp.float32(0), zero)), (inputs, targets))
    return total


def _varying(tree):
    """The same values, with the type of values that differ from device to device."""
    return jax.tree.map(lambda x: lax.pcast(x, AXIS, to="varying"), tree)
