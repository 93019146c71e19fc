"""The head: logits over the vocabulary and their cross-entropy (llm.c fused_classifier.cuh).

One op for both, so that an implementation decides how much of the logits ever exists. The
gradient of the total loss with respect to each row's loss, dlosses, is a constant of the step
(1 / tokens), known before forward runs: so forward may turn a row's logits into their gradient
while they are at hand, as llm.c does, and backward is two matrix products.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from llmc_jax.ops.matmul import dot, rows
from llmc_jax.ops.op import Op, run_kernel


class Saved(NamedTuple):
    dlogits: Array  # (B*T, Vp), gradient of the total loss; zero in the padded columns


def logits(lnf, wte):
    """lnf @ wte.T in the accumulation dtype; lnf (B,T,C), wte (Vp,C), out (B*T,Vp)."""
    return dot(rows(lnf), wte.astype(lnf.dtype), (1, 1))


def forward(lnf, wte, targets, dlosses, *, V):
    """losses = logsumexp(logits[:V]) - logits[target], 0 where target < 0 (ignored).

    lnf (B,T,C), wte (Vp,C), targets (B,T) int32 below V, losses and dlosses (B,T) float32.
    Columns from V on take no part. dlosses None: losses only, and saved is None.
    """
    z = logits(lnf, wte)
    target = targets.reshape(-1, 1)
    column = jnp.arange(z.shape[1])[None]
    z = jnp.where(column < V, z, -jnp.inf)
    largest = jnp.max(z, axis=1, keepdims=True)
    exp = jnp.exp(z - largest)
    total = jnp.sum(exp, axis=1, keepdims=True)
    target_logit = jnp.take_along_axis(z, jnp.maximum(target, 0), axis=1)
    losses = jnp.where(target >= 0, jnp.log(total) + largest - target_logit, 0)
    losses = losses.reshape(targets.shape)
    if dlosses is None:
        return losses, None
    row_scale = jnp.where(target >= 0, dlosses.reshape(-1, 1), 0)
    dlogits = (exp / total - (column == target)) * row_scale
    return losses, Saved(dlogits.astype(lnf.dtype))


def backward(saved, dout, lnf, wte, targets, dlosses, *, V):
    """dlnf = dlogits @ wte (B,T,C), dwte = dlogits.T @ lnf (Vp,C) in the accumulation dtype.

    dout must be the dlosses that forward was given.
    """
    dlnf = dot(saved.dlogits, wte.astype(lnf.dtype), (1, 0)).astype(lnf.dtype).reshape(lnf.shape)
    return dlnf, dot(saved.dlogits, rows(lnf), (0, 0))


class Gradients(NamedTuple):
    """What the kernel's forward saves: the gradients themselves."""

    dlnf: Array  # (B, T, C)
    dwte: Array  # (Vp, C)


def native_forward(lnf, wte, targets, dlosses, *, V):
    """`forward` as a kernel that makes the gradients while it has the logits of some rows."""
    losses = jax.ShapeDtypeStruct(targets.shape, jnp.float32)
    if dlosses is None:
        return run_kernel("llmc_classifier_losses", losses, lnf, wte, targets, V=V), None
    inputs = (lnf, wte, targets, dlosses)
    losses, saved = jax.eval_shape(partial(forward, V=V), *inputs)
    gradients = jax.eval_shape(partial(backward, V=V), saved, losses, *inputs)
    return run_kernel("llmc_classifier_forward", (losses, Gradients(*gradients)), *inputs, V=V)


def native_backward(saved, dout, lnf, wte, targets, dlosses, *, V):
    """dlnf, dwte as `native_forward` left them."""
    return tuple(saved)


JNP = Op(forward, backward)
IMPLEMENTATIONS = {
    "jnp": JNP,
    "ffi": Op(native_forward, native_backward, rounds_weights=True),
}
