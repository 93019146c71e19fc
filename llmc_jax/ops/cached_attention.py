"""Attention of one new token of each text to itself and to those before it, kept in a cache.

The step of generation (models/gpt2_decode.py); there is no backward. Keys and values lie in the
cache at the place of their token; what is behind a text's position is whatever was left there.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from llmc_jax.ops.op import accumulation_dtype, run_kernel


def forward(qkv, keys, values, position, *, NH):
    """out = softmax(q keys[:position + 1]^T / sqrt(HS)) values[:position + 1], for each head.

    qkv (B,1,3C), whose k and v are first written to the cache at `position` (B,) int32, below S;
    keys, values (B,NH,S,HS). Returns (out (B,1,C), keys, values).
    """
    B, _, S, HS = keys.shape
    q, k, v = (x.reshape(B, NH, HS) for x in jnp.split(qkv, 3, axis=-1))
    keys, values = _write(keys, k, position), _write(values, v, position)
    wide = dict(preferred_element_type=accumulation_dtype(qkv.dtype))
    scores = jnp.einsum("bhd,bhsd->bhs", q, keys, **wide) / math.sqrt(HS)
    seen = jnp.arange(S)[None, None] <= position[:, None, None]
    att = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1).astype(qkv.dtype)
    out = jnp.einsum("bhs,bhsd->bhd", att, values, **wide).astype(qkv.dtype)
    return out.reshape(B, 1, NH * HS), keys, values


def _write(cache, new, position):
    """cache (B,NH,S,HS) with new (B,NH,HS) at the position (B,) of each row."""
    return cache.at[jnp.arange(cache.shape[0]), :, position].set(new)


def native_forward(qkv, keys, values, position, *, NH):
    """`forward` as a kernel, which writes to the cache in its place."""
    inputs = (qkv, keys, values, position)
    results = jax.eval_shape(partial(forward, NH=NH), *inputs)
    return run_kernel("llmc_cached_attention", results, *inputs, aliases={1: 1, 2: 2})


IMPLEMENTATIONS = {"jnp": forward, "ffi": native_forward}
