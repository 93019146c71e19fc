"""One training step and one evaluation step, as each device runs them.

parallel.py maps the functions over the devices. What they send to each other, and what they keep
in parts by --zero_stage, is in zero.py.
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
from llmc_jax.ops.op import uninitialized
from llmc_jax.training import outliers, zero
from llmc_jax.training.outliers import Window
from llmc_jax.training.schedules import learning_rate
from llmc_jax.training.zero import AXIS


class TrainState(NamedTuple):
    """What a step changes, in float32; the same on every device but for what is in parts."""

    params: Params  # from ZeRO's stage 3 on in parts (zero.py)
    m: Params  # AdamW's first moment, from stage 1 on in parts
    v: Params  # AdamW's second moment, the same
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


def state_shapes(model: ModelConfig) -> TrainState:
    """The state as shapes and types, whole."""
    return jax.eval_shape(init_state, gpt2.shapes(model))


def train_step(
    state: TrainState,
    rooms: list[Array],
    inputs,
    targets,
    *,
    ops: Ops,
    model: ModelConfig,
    cfg: TrainConfig,
) -> tuple[TrainState, list[Array], Metrics]:
    """AdamW on the mean gradient of A micro-batches on each device.

    rooms: of rooms.py, whose values mean nothing; given back as the second result. inputs, targets
    (A,B,T) int32. Gradients are accumulated in float32 and averaged over devices
    (--grad_reduce_dtype), then clipped by their global norm. Where the loss or the norm is not
    finite, or an outlier by --skip_loss_zscore or --skip_grad_zscore, the step counts but changes
    neither parameters nor moments.
    """
    stage = zero.stage_in_force(cfg, lax.axis_size(AXIS))
    loss, grads = _gradients(ops, state.params, inputs, targets, model, cfg, stage)
    norm = ops.global_norm(grads)
    if stage:  # of this device's parts
        norm = jnp.sqrt(lax.psum(jnp.square(norm), AXIS))
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
    updated = _update(ops, state, grads, hyper, model, cfg, stage)
    state = TrainState(*updated, state.step + 1, losses, grad_norms)
    metrics = Metrics(loss, norm, hyper.lr, loss_zscore, grad_zscore, skip)
    return state, uninitialized(rooms, when=state.params.lnfb), metrics


def in_factors(cfg: TrainConfig, model: ModelConfig, micro_batches: int, devices: int) -> bool:
    """Whether gradients of the layers' weights are left in their factors (ops/factors.py).

    They are where they would be neither added up nor sent, where the factors of each are at most
    two thirds of it (of a weight (C,C), which has the largest), and where --recompute says that
    memory is dearer than time.
    """
    few_rows = 3 * cfg.batch_size * cfg.sequence_length <= model.C
    return cfg.recompute >= 2 and few_rows and micro_batches == devices == 1


def eval_step(params: Params, inputs, targets, *, ops: Ops, model: ModelConfig, cfg: TrainConfig):
    """Mean loss over all devices' (B,T) targets, ignored ones as 0; a float32 scalar."""
    stage = zero.stage_in_force(cfg, lax.axis_size(AXIS))
    params = _weights(params, ops, model, cfg, stage)
    params, fetch = _fetched(params, model, stage)
    options = dict(cfg=model, dtype=cfg.dtype, fetch=fetch)
    losses, _ = gpt2.forward(ops, params, inputs, targets, None, **options)
    return zero.mean(jnp.mean(losses))


def _gradients(ops, params, inputs, targets, model, cfg, stage):
    """Mean loss over all devices' micro-batches, and its gradients: from stage 1 on in parts."""
    dtype = jnp.dtype(cfg.grad_reduce_dtype)

    def in_parts(grads):
        return jax.tree.map(lambda g: zero.mean_part(g, dtype), grads)

    each = in_parts if stage >= 2 else lambda grads: grads
    loss, grads = _accumulate(ops, params, inputs, targets, model, cfg, stage, each)
    loss = zero.mean(loss)
    if stage == 0:
        return loss, zero.mean(grads, dtype)
    return loss, in_parts(grads) if stage == 1 else grads


def _accumulate(ops, params, inputs, targets, model, cfg, stage, each):
    """Mean loss and gradients over this device's micro-batches; inputs, targets (A,B,T).

    each: what becomes of the gradients of every micro-batch before they are added up.
    """
    if in_factors(cfg, model, inputs.shape[0], lax.axis_size(AXIS)):
        ops = ops.in_factors()
    params = _weights(params, ops, model, cfg, stage)
    if stage < 3:
        # Each device's gradients are its own until they are reduced: JAX's type system is told so
        # here, and then refuses a step that forgets to. (Parts are of that type from the start.)
        params = _varying(params)
    dlosses = jnp.full(inputs.shape[1:], 1 / inputs.size, jnp.float32)

    def micro_step(inputs, targets):
        fetched, fetch = _fetched(params, model, stage)
        losses, acts = gpt2.forward(
            ops, fetched, inputs, targets, dlosses,
            cfg=model, recompute=cfg.recompute, dtype=cfg.dtype, fetch=fetch,
        )  # fmt: skip
        grads = gpt2.backward(ops, fetched, acts, dlosses, inputs, targets, cfg=model, fetch=fetch)
        return jnp.sum(losses * dlosses), each(grads)

    if inputs.shape[0] == 1:  # no accumulator: saves a pass over all gradients
        return micro_step(inputs[0], targets[0])

    def add(total, batch):
        return jax.tree.map(jnp.add, total, micro_step(*batch)), None

    grads = jax.eval_shape(micro_step, inputs[0], targets[0])[1]
    zeros = jax.tree.map(lambda g: jnp.zeros(g.shape, jnp.float32), grads)
    total, _ = lax.scan(add, _varying((jnp.float32(0), zeros)), (inputs, targets))
    return total


def _weights(params, ops, model, cfg, stage):
    """The parameters as the ops take them: rounded to --dtype, unless all ops do that themselves.

    A rounded copy of GPT-2 124M is 237 MiB, and to write it and read it twice costs as much as to
    read the float32 weights twice. Parts are always rounded: then half as much is sent.
    """
    readers = (ops.encoder, ops.matmul, ops.mlp, ops.classifier)
    if stage < 3 and all(op.rounds_weights for op in readers):
        return params
    return gpt2.cast(params, cfg.dtype, like=gpt2.shapes(model))


def _fetched(params, model, stage):
    """The parameters, and the function that gets those of a layer when its turn comes.

    Those outside of the layers are needed at both ends of the model, and stay.
    """
    if stage < 3:
        return params, gpt2.at_hand
    shapes = gpt2.shapes(model)
    outer = params._replace(block=()), shapes._replace(block=())
    outer = jax.tree.map(lambda part, x: zero.whole(part, x.shape, to="varying"), *outer)
    return outer._replace(block=params.block), zero.make_fetch(shapes.block[0])


def _update(ops, state, grads, hyper, model, cfg, stage):
    """AdamW's new (params, m, v), on this device's parts of them where they are in parts."""
    shapes = gpt2.shapes(model)
    decay = jax.tree.map(lambda p: cfg.weight_decay if gpt2.is_matrix(p) else 0.0, shapes)
    params = jax.tree.map(zero.own_part, state.params) if stage in (1, 2) else state.params
    params, m, v = ops.adamw(params, grads, state.m, state.v, hyper, weight_decay=decay)
    if stage in (1, 2):
        params = jax.tree.map(lambda part, x: zero.whole(part, x.shape), params, shapes)
    return params, m, v


def _varying(tree):
    """The same values, with the type of values that differ from device to device."""
    if lax.axis_size(AXIS) == 1:
        return tree
    return jax.tree.map(lambda x: lax.pcast(x, AXIS, to="varying"), tree)
