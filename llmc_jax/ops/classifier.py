"""The head: logits over the vocabulary and their cross-entropy (llm.c fused_classifier.cuh).

One op for both, so that an implementation decides how much of the logits ever exists. The
gradient of the total loss with respect to each row's loss, dlosses, is a constant of the step
(1 / tokens), known before forward runs: so forward may turn a row's logits into their gradient
while they are at hand, as llm.c does, and backward is two matrix products.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from llmc_jax.ops.matmul import dot, input_gradient, rounded_dot, rows
from llmc_jax.ops.op import Cost, Op, run_kernel, size


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


def backward(saved, dout, lnf, wte, targets, dlosses, *, V, product=dot):
    """dlnf = dlogits @ wte (B,T,C), dwte = dlogits.T @ lnf (Vp,C) in the accumulation dtype.

    dout must be the dlosses that forward was given. product: what makes dlnf.
    """
    dlnf = input_gradient(saved.dlogits, wte, product).reshape(lnf.shape)
    return dlnf, dot(saved.dlogits, rows(lnf), (0, 0))


def native_logits(lnf, wte):
    """`logits` as a kernel."""
    return run_kernel("llmc_logits", jax.eval_shape(logits, lnf, wte), lnf, wte)


class Gradients(NamedTuple):
    """What a forward saves that makes the gradients themselves."""

    dlnf: Array  # (B, T, C)
    dwte: Array  # (Vp, C)


KEPT = 2048  # bytes of powers of each token that exist at once: 103 MB of GPT-2's


def native_forward(lnf, wte, targets, dlosses, *, V):
    """`forward` as a kernel that makes the gradients while it has powers of e of some rows' logits.

    They are a result that nobody reads: so XLA lays them where other things are at other times,
    and plans with them.
    """
    losses = jax.ShapeDtypeStruct(targets.shape, jnp.float32)
    if dlosses is None:
        return run_kernel("llmc_classifier_losses", losses, lnf, wte, targets, V=V), None
    inputs = (lnf, wte, targets, dlosses)
    losses, saved = jax.eval_shape(partial(forward, V=V), *inputs)
    gradients = jax.eval_shape(partial(backward, V=V), saved, losses, *inputs)
    at_once = min(targets.size, KEPT // lnf.dtype.itemsize)
    powers = jax.ShapeDtypeStruct((at_once, wte.shape[0]), lnf.dtype)
    results = (losses, Gradients(*gradients), powers)
    return run_kernel("llmc_classifier_forward", results, *inputs, V=V)[:2]


def rounded_logits(lnf, wte):
    """`logits` in the dtype of lnf, which is what the CUDA kernel reads once and writes once."""
    return rounded_dot(rows(lnf), wte.astype(lnf.dtype), (1, 1))


def cuda_forward(lnf, wte, targets, dlosses, *, V):
    """`forward` with a kernel that turns logits into their gradient in their place."""
    z = rounded_logits(lnf, wte)
    losses = jax.ShapeDtypeStruct(targets.shape, jnp.float32)
    if dlosses is None:
        return run_kernel("llmc_cuda_classifier_losses", losses, z, targets, V=V), None
    results = (losses, Saved(jax.ShapeDtypeStruct(z.shape, z.dtype)))
    inputs = (z, targets, dlosses)
    return run_kernel("llmc_cuda_classifier_forward", results, *inputs, aliases={0: 1}, V=V)


# Rows of which a chunked classifier has the logits at once. GPT-2's are 824 MB, in float32 as
# jnp makes them, and in bfloat16 with the CUDA kernel.
CHUNK = 4096
CUDA_CHUNK = 8192


def chunked_forward(whole: Callable, lnf, wte, targets, dlosses, *, V, chunk):
    """The forward `whole` for small memories: the logits of `chunk` rows at a time, used up.

    Saves the gradients themselves. dwte is a sum over chunks, so it is read and written for each.
    """
    N, C = targets.size, lnf.shape[-1]
    per_row = (lnf.reshape(N, C), targets.reshape(N))
    if dlosses is not None:
        per_row += (dlosses.reshape(N),)

    def of_rows(lnf, targets, dlosses=None):
        """(dwte, what a row has of its own): of losses only, dwte is none."""
        losses, saved = whole(lnf[None], wte, targets, dlosses, V=V)
        if saved is None:
            return (), (losses,)
        dlnf, dwte = backward(saved, losses, lnf[None], wte, targets, dlosses, V=V)
        return dwte, (losses, dlnf[0])

    def step(dwte, of_chunk):
        more, results = of_rows(*of_chunk)
        return jax.tree.map(jnp.add, dwte, more), results

    first = (N - 1) % chunk + 1  # as many rows as fill no chunk of their own
    dwte, results = of_rows(*(x[:first] for x in per_row))
    chunks = [x[first:].reshape(-1, chunk, *x.shape[1:]) for x in per_row]
    dwte, others = lax.scan(step, dwte, chunks)
    losses, *dlnf = (
        jnp.concatenate([x, rest.reshape(-1, *x.shape[1:])])
        for x, rest in zip(results, others, strict=True)
    )
    losses = losses.reshape(targets.shape)
    return losses, Gradients(dlnf[0].reshape(lnf.shape), dwte) if dlnf else None


def saved_gradients(saved, dout, lnf, wte, targets, dlosses, *, V):
    """dlnf, dwte as forward left them."""
    return tuple(saved)


LOGITS = {"jnp": logits, "ffi": native_logits}


def cost(lnf, wte, targets, dlosses, *, V) -> tuple[Cost, Cost]:
    """One product forward, two backward; no logit need leave a kernel. dwte is float32."""
    product = 2 * math.prod(targets.shape) * math.prod(wte.shape)
    forward = Cost(product, size(lnf, wte, targets, targets))
    return forward, Cost(2 * product, size(lnf, lnf, wte) + 4 * math.prod(wte.shape))


JNP = Op(forward, backward)
IMPLEMENTATIONS = {
    "jnp": JNP,
    "ffi": Op(native_forward, saved_gradients, rounds_weights=True),
    "chunked": Op(partial(chunked_forward, forward, chunk=CHUNK), saved_gradients),
    "cuda": Op(cuda_forward, partial(backward, product=rounded_dot)),
    "cuda_chunked": Op(partial(chunked_forward, cuda_forward, chunk=CUDA_CHUNK), saved_gradients),
}
