"""Causal multi-head attention on packed qkv (llm.c attention.cuh).

Backward computes the probabilities again from the log-sum-exp that forward saves, as
FlashAttention does (Dao et al. 2022, arXiv:2205.14135), so nothing of size T x T outlives an op.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp

from llmc_jax.config import BadInput
from llmc_jax.ops.op import Cost, Op, accumulation_dtype, after, native, run_kernel, size


class Saved(NamedTuple):
    out: Array  # (B, T, C): the op's own output, for the model to keep once
    lse: Array  # (B, NH, T) float32, log-sum-exp of each query's scaled scores


def forward(qkv, *, NH):
    """out = softmax(q k^T / sqrt(HS), causal) v for each head; qkv (B,T,3C), out (B,T,C)."""
    q, k, v = _heads(qkv, NH)
    scores = _scores(q, k)
    lse = logsumexp(scores, axis=-1)
    att = jnp.exp(scores - lse[..., None])
    out = _merge(_einsum("bhts,bhsd->bhtd", att.astype(qkv.dtype), v)).astype(qkv.dtype)
    return out, Saved(out, lse)


def backward(saved, dout, qkv, *, NH):
    """dscores = att * (datt - sum_s(datt * att)), and dq, dk, dv from it; dqkv (B,T,3C).

    The inner sum is taken as sum_d(dout * out), which is equal and needs no T x T tensor.
    """
    q, k, v = _heads(after(qkv, dout), NH)
    out, lse = (after(x, dout) for x in saved)
    do = _split(dout, NH)
    att = jnp.exp(_scores(q, k) - lse[..., None])
    datt = _einsum("bhtd,bhsd->bhts", do, v)
    row_sum = jnp.sum(_wide(do) * _wide(_split(out, NH)), axis=-1, keepdims=True)
    dscores = (att * (datt - row_sum) * _scale(q)).astype(qkv.dtype)
    dq = _einsum("bhts,bhsd->bhtd", dscores, k)
    dk = _einsum("bhts,bhtd->bhsd", dscores, q)
    dv = _einsum("bhts,bhtd->bhsd", att.astype(qkv.dtype), do)
    return (jnp.concatenate([_merge(x) for x in (dq, dk, dv)], axis=-1).astype(qkv.dtype),)


def _heads(qkv, NH):
    """q, k, v, each (B,NH,T,HS), from qkv (B,T,3C)."""
    return (_split(x, NH) for x in jnp.split(qkv, 3, axis=-1))


def _split(x, NH):
    """(B,T,C) as (B,NH,T,HS)."""
    B, T, C = x.shape
    return x.reshape(B, T, NH, C // NH).transpose(0, 2, 1, 3)


def _merge(x):
    """(B,NH,T,HS) as (B,T,C)."""
    B, NH, T, HS = x.shape
    return x.transpose(0, 2, 1, 3).reshape(B, T, NH * HS)


def _scores(q, k):
    """Scaled scores, -inf where the key is after the query; (B,NH,T,T)."""
    T = q.shape[2]
    causal = jnp.tril(jnp.ones((T, T), bool))
    return jnp.where(causal[None, None], _einsum("bhtd,bhsd->bhts", q, k) * _scale(q), -jnp.inf)


def _scale(q):
    return 1 / math.sqrt(q.shape[-1])


def _einsum(spec, a, b):
    return jnp.einsum(spec, a, b, preferred_element_type=accumulation_dtype(a.dtype))


def _wide(x):
    return x.astype(accumulation_dtype(x.dtype))


def native_forward(qkv, *, NH):
    """`forward` as a kernel that returns its output once: the two outs are one array."""
    _, results = jax.eval_shape(partial(forward, NH=NH), qkv)
    saved = run_kernel("llmc_attention_forward", results, qkv, NH=NH)
    return saved.out, saved


CUDA_HEAD_SIZES = (64, 128)  # in bfloat16 and float16; in float32 all up to 128
CUDA_DQ_ROWS = 64  # dq_sum has a multiple of these (AttentionDqRows in ffi/cuda/kernels.h)


def cuda(deterministic: bool) -> Op:
    """The kernels of ffi/cuda; deterministic: with the same dqkv every time, a little later."""

    def forward(qkv, *, NH):
        _require_cuda_heads(qkv.shape[-1] // (3 * NH), qkv.dtype)
        _, results = jax.eval_shape(partial(JNP.forward, NH=NH), qkv)
        saved = run_kernel("llmc_cuda_attention_forward", results, qkv, NH=NH)
        return saved.out, saved

    def backward(saved, dout, qkv, *, NH):
        B, T, C = dout.shape
        sums = not deterministic and qkv.dtype != jnp.float32
        dq_sum = (B if sums else 0, T + -T % CUDA_DQ_ROWS, C)
        scratch = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (saved.lse.shape, dq_sum))
        dqkv, *_ = run_kernel(
            "llmc_cuda_attention_backward",
            (jax.ShapeDtypeStruct(qkv.shape, qkv.dtype), *scratch),
            saved,
            dout,
            qkv,
            NH=NH,
            deterministic=deterministic,
        )
        return (dqkv,)

    return Op(forward, backward)


def _require_cuda_heads(HS: int, dtype) -> None:
    """Raises BadInput for heads that the CUDA kernels do not take (which check this too)."""
    if not (HS <= 128 if dtype == jnp.float32 else HS in CUDA_HEAD_SIZES):
        raise BadInput(
            f"--ops=attention=cuda takes heads of 64 or 128 channels (up to 128 in float32), and "
            f"these have {HS} in {dtype}; attention=jnp takes any, cudnn others on a GPU."
        )


class JaxSaved(NamedTuple):
    out: Array  # (B, T, C)
    vjp: Callable  # JAX's own backward with what it needs, a tree of arrays


def from_jax(attention: Callable) -> Op:
    """attention(qkv, NH) -> out (B,T,C) by JAX, with the backward that comes with it.

    It takes q, k and v apart: copies of qkv's parts forward, and of dqkv's backward.
    """

    def forward(qkv, *, NH):
        out, vjp = jax.vjp(partial(attention, NH=NH), qkv)
        return out, JaxSaved(out, vjp)

    def backward(saved, dout, qkv, *, NH):
        return saved.vjp(dout)

    return Op(forward, backward)


def dot_product_attention(qkv, NH, *, implementation: str):
    """jax.nn.dot_product_attention: "cudnn" or "xla"."""
    B, T, _ = qkv.shape
    q, k, v = (x.reshape(B, T, NH, -1) for x in jnp.split(qkv, 3, axis=-1))
    try:
        out = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=implementation)
    # not on this GPU, or not this type or size
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise BadInput(
            f"--ops=attention={implementation}: {str(error).rstrip('.')}; attention=jnp takes "
            f"everything."
        ) from error
    return out.reshape(B, T, -1)


TPU_BLOCKS = (512, 256, 128)  # rows of q and of k at a time, the largest that divides T


def flash_attention(qkv, NH):
    """JAX's Pallas kernel for TPUs (jax.experimental.pallas.ops.tpu.flash_attention).

    Its blocks must divide T. What is added to T lies behind every query, where nothing causal
    looks, and is cut off again.
    """
    from jax.experimental.pallas.ops.tpu import flash_attention as tpu

    T = qkv.shape[1]
    padded = jnp.pad(qkv, ((0, 0), (0, -T % TPU_BLOCKS[-1]), (0, 0)))
    block = next(b for b in TPU_BLOCKS if padded.shape[1] % b == 0)
    names = [name for name in tpu.BlockSizes.__dataclass_fields__ if name != "block_b"]
    blocks = dict.fromkeys(names, block)
    # backward's dq takes a sum for each query as many times over as its block has keys
    blocks |= dict(block_k_major_dq=TPU_BLOCKS[-1], block_k_dq=TPU_BLOCKS[-1])
    sizes = tpu.BlockSizes(block_b=1, **blocks)
    q, k, v = _heads(padded, NH)
    out = tpu.flash_attention(q, k, v, causal=True, sm_scale=_scale(q), block_sizes=sizes)
    return _merge(out)[:, :T]


def cost(qkv, *, NH) -> tuple[Cost, Cost]:
    """Two products forward and five backward, of half of the (T, T) square."""
    B, T, C = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    product = 2 * B * T * (T / 2) * C
    out = size(qkv) / 3
    return Cost(2 * product, 4 * out), Cost(5 * product, 8 * out)


JNP = Op(forward, backward)
IMPLEMENTATIONS = {
    "jnp": JNP,
    "ffi": Op(native_forward, native("attention", like=JNP).backward),
    "cuda": cuda(deterministic=False),
    "cuda_deterministic": cuda(deterministic=True),
    "cudnn": from_jax(partial(dot_product_attention, implementation="cudnn")),
    "pallas": from_jax(flash_attention),
}
