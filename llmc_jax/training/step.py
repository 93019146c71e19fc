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
from llmc_jax.training import outliers
from llmc_jax.training.outliers import Window
from llmc_jax.training.schedules import learning_rate

AXIS = "data"


class TrainState(NamedTuple):
    """What a step changes; everything is float32 and the same on every device."""

    params: Params
    m: Params  # AdamW's first moment
    v: Params  # AdamW's second moment
    step: Array  # int32, number of steps made, skipped ones included
    losses: Window  # what --skip_loss_zscore compares with
    grad_norms: Window  # what --skip_grad_zscore compares with


class Metrics(NamedTuple):
    """Scalars of one step, left on the device until somebody reads them."""

    loss: Array  # mean over the step's tokens
    grad_norm: Array  # before clipping
    learning_rate: Array
    loss_zscore: Array  # among the last losses; NaN until there are enough of them
    grad_zscore: Array
    skipped: Array  # bool: parameters and moments stayed as they were


def init_state(params: Params) -> TrainState:
    """The state before the first step: moments are 0."""
    m, v = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
    windows = outliers.empty_window(), outliers.empty_window()
    return TrainState(params, m, v, jnp.int32(0), *windows)


def gradient_memory(params: Params, model: ModelConfig, cfg: TrainConfig) -> Params | None:
    """Memory for the gradients that lasts from step to step, or None where it does not pay.

    Memory that a step takes and gives back is cleared by the operating system each time it is
    touched again, a fifth of a small step's time on a CPU. But gradients without memory of their
    own share that of the activations: so they get some where the activations are the smaller.
    """
    tokens = cfg.batch_size * cfg.sequence_length
    activations = 12 * model.L * model.C * tokens * jnp.dtype(cfg.dtype).itemsize
    if activations > sum(p.size * 4 for p in jax.tree.leaves(params)):
        return None
    return jax.tree.map(jnp.zeros_like, params)


def train_step(
    state: TrainState,
    memory: Params | None,
    inputs,
    targets,
    *,
    ops: Ops,
    model: ModelConfig,
    cfg: TrainConfig,
) -> tuple[TrainState, Params | None, Metrics]:
    """AdamW on the mean gradient of A micro-batches on each device.

    memory: of `gradient_memory`, whose values mean nothing; given back as the second result, it
    holds the gradients. inputs, targets (A,B,T) int32. Gradients are accumulated and averaged
    over devices in float32, then clipped by their global norm. Where the loss or the norm is not
    finite, or an outlier by --skip_loss_zscore or --skip_grad_zscore, the step counts but changes
    neither parameters nor moments.
    """
    loss, grads = _accumulate(ops, state.params, inputs, targets, model, cfg)
    loss, grads = _mean_over_devices((loss, grads))
    norm = ops.global_norm(grads)
    losses, loss_zscore = outliers.add(state.losses, loss)
    grad_norms, grad_zscore = outliers.add(state.grad_norms, norm)
    skip = ~(jnp.isfinite(loss) & jnp.isfinite(norm))
    # A score that is NaN is greater than nothing.
    if cfg.skip_loss_zscore:
        skip |= loss_zscore > cfg.skip_loss_zscore
    if cfg.skip_grad_zscore:
        skip |= grad_zscore > cfg.skip_grad_zscore
    clip = cfg.grad_clip if cfg.grad_clip > 0 else jnp.inf
    hyper = Hyper(
        lr=learning_rate(state.step, cfg),
        scale=jnp.where(skip, jnp.nan, jnp.minimum(1, clip / norm)),
        step=state.step + 1,
        beta1=cfg.adam_beta1,
        beta2=cfg.adam_beta2,
        eps=cfg.adam_eps,
    )

    decay = jax.tree.map(lambda p: cfg.weight_decay if gpt2.is_matrix(p) else 0.0, state.params)
    params, m, v = ops.adamw(state.params, grads, state.m, state.v, hyper, weight_decay=decay)
    state = TrainState(params, m, v, state.step + 1, losses, grad_norms)
    metrics = Metrics(loss, norm, hyper.lr, loss_zscore, grad_zscore, skip)
    return state, None if memory is None else grads, metrics


def eval_step(params: Params, inputs, targets, *, ops: Ops, model: ModelConfig, cfg: TrainConfig):
    """Mean loss over all devices' (B,T) targets, a float32 scalar."""
    params = _weights(params, ops, cfg)
    losses, _ = gpt2.forward(ops, params, inputs, targets, None, cfg=model, dtype=cfg.dtype)
    return _mean_over_devices(jnp.mean(losses))


def _accumulate(ops, params, inputs, targets, model, cfg):
    """Mean loss and gradients over this device's micro-batches; inputs, targets (A,B,T)."""
    # Each device's gradients are its own until pmean: JAX's type system is told so here, and
    # then refuses a step that forgets to reduce them.
    params = _varying(_weights(params, ops, cfg))
    dlosses = jnp.full(inputs.shape[1:], 1 / inputs.size, jnp.float32)

    def micro_step(inputs, targets):
        losses, acts = gpt2.forward(
            ops, params, inputs, targets, dlosses,
            cfg=model, recompute=cfg.recompute, dtype=cfg.dtype,
        )  # fmt: skip
        grads = gpt2.backward(ops, params, acts, dlosses, inputs, targets, cfg=model)
        return jnp.sum(losses * dlosses), grads

    if inputs.shape[0] == 1:  # no accumulator: saves a pass over all gradients
        return micro_step(inputs[0], targets[0])

    def add(total, batch):
        return jax.tree.map(jnp.add, total, micro_step(*batch)), None

    zero = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    total, _ = lax.scan(add, _varying((jnp.float32(0), zero)), (inputs, targets))
    return total


def _weights(params, ops, cfg):
    """The parameters as the ops take them: rounded to --dtype, unless all ops do that themselves.

    A rounded copy of GPT-2 124M is 237 MiB, and to write it and read it twice costs as much as to
    read the float32 weights twice.
    """
    readers = (ops.encoder, ops.matmul, ops.mlp, ops.classifier)
    return params if all(op.rounds_weights for op in readers) else gpt2.cast(params, cfg.dtype)


def _mean_over_devices(tree):
    """The mean of each leaf over the devices. Of one device it is left out: a reduction over a
    single device is a copy to XLA:CPU, 475 MiB of gradients for GPT-2 124M."""
    return lax.pmean(tree, AXIS) if lax.axis_size(AXIS) > 1 else tree


def _varying(tree):
    """The same values, with the type of values that differ from device to device."""
    if lax.axis_size(AXIS) == 1:
        return tree
    return jax.tree.map(lambda x: lax.pcast(x, AXIS, to="varying"), tree)
