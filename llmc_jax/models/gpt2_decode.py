"""GPT-2 one token at a time: a prompt at once, then steps that read keys and values from a cache.

A text's token number t lies at place t of the cache, however long the texts beside it are: texts
of a batch are padded behind their ends, and what lies behind an end is overwritten or not looked
at.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from llmc_jax.config import ModelConfig
from llmc_jax.models import gpt2
from llmc_jax.models.gpt2 import Params, Stream
from llmc_jax.ops import Ops
from llmc_jax.ops.op import Op


class Cache(NamedTuple):
    """Keys and values of a layer, in the dtype of the activations."""

    keys: Array  # (B, NH, S, HS)
    values: Array  # (B, NH, S, HS)


def prefill(ops: Ops, params: Params, inputs, lengths, *, cfg: ModelConfig, S: int):
    """The cache of some texts, with S places, and what comes after each text.

    inputs (B,T) int32, T at most S; lengths (B,) int32, from 1 to T: what is behind them is
    padding. Returns (logits (B,V) float32 after the last token of each text, a Cache a layer).
    """
    stream, acts = gpt2.trunk(ops, params, inputs, cfg=cfg, recompute=gpt2.DROPS_FCH)
    ends = (lengths - 1)[:, None, None]
    last = jax.tree.map(lambda x: jnp.take_along_axis(x, ends, axis=1), stream)
    return gpt2.head(ops, params, last, cfg), tuple(_cache(a.qkv, cfg.NH, S) for a in acts)


def step(ops: Ops, params: Params, cache: tuple[Cache, ...], tokens, position, *, cfg: ModelConfig):
    """Another token of each text: tokens (B,) int32 at position (B,) int32, below S.

    Returns (logits (B,V) float32 after it, the cache with it). The layers are gpt2's, with
    another attention.
    """
    encoded = params.wte[tokens[:, None]] + params.wpe[position[:, None]]
    stream = Stream(encoded, None)
    written = []
    for p, of_layer in zip(params.block, cache, strict=True):

        def attention(qkv, *, NH, of_layer=of_layer):
            out, *of_layer = ops.cached_attention(qkv, *of_layer, position, NH=NH)
            return out, Cache(*of_layer)

        with_cache = ops._replace(attention=Op(attention, backward=None))
        stream, acts = gpt2.block_forward(with_cache, p, stream, NH=cfg.NH, keep_fch=False)
        written.append(acts.att)
    return gpt2.head(ops, params, stream, cfg), tuple(written)


def _cache(qkv, NH: int, S: int) -> Cache:
    """Keys and values of qkv (B,T,3C), and room for those of S - T tokens."""
    B, T, _ = qkv.shape
    _, k, v = jnp.split(qkv.reshape(B, T, 3 * NH, -1).transpose(0, 2, 1, 3), 3, axis=1)
    return Cache(*(jnp.pad(x, ((0, 0), (0, 0), (0, S - T), (0, 0))) for x in (k, v)))
