"""Logits from the cache are those of the whole text, wherever its prompt ends."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmc_jax import ffi, ops
from llmc_jax.models import gpt2, gpt2_decode
from tests import quick, tiny

B, T, S = 3, 20, 24
SPECS = ["jnp", "auto", "jnp,cached_attention=ffi", "auto,cached_attention=jnp,logits=jnp"]


def problem():
    """Parameters away from their initial values, and texts (B,T)."""
    rng = np.random.default_rng(0)
    shapes = gpt2.shapes(tiny.MODEL)
    params = jax.tree.map(lambda s: (0.3 * rng.normal(size=s.shape)).astype(np.float32), shapes)
    return params, tiny.tokens(B * T).reshape(B, T).astype(np.int32)


@functools.cache
def compiled(spec):
    """prefill, step, and the logits of whole texts."""
    chosen, _ = ops.select(spec, "cpu")
    jit = quick.jit if spec == "jnp" else jax.jit
    return (
        jit(partial(gpt2_decode.prefill, chosen, cfg=tiny.MODEL, S=S)),
        jit(partial(gpt2_decode.step, chosen, cfg=tiny.MODEL), donate_argnums=1),
        jit(partial(gpt2.logits, chosen, cfg=tiny.MODEL)),
    )


def every_logit(spec, params, texts, lengths):
    """(B,T,V) float32: of the prompts' last tokens by prefill, of what follows by steps, and NaN
    before."""
    prefill, step, _ = compiled(spec)
    out = np.full((*texts.shape, tiny.MODEL.V), np.nan, np.float32)
    behind = np.arange(texts.shape[1])[None] >= lengths[:, None]
    logits, cache = prefill(params, np.where(behind, 1, texts), lengths)  # 1: any token
    rows = np.arange(len(texts))
    out[rows, lengths - 1] = logits
    for number in range(texts.shape[1] - lengths.min()):
        place = np.minimum(lengths + number, texts.shape[1] - 1)  # again, where a text has ended
        logits, cache = step(params, cache, texts[rows, place], place)
        goes_on = lengths + number < texts.shape[1]
        out[rows[goes_on], place[goes_on]] = logits[goes_on]
    return out


@pytest.mark.parametrize("lengths", [(1, 1, 1), (7, 20, 1), (19, 2, 12)])
@pytest.mark.parametrize("spec", SPECS)
def test_cached_logits_are_those_of_the_whole_text(spec, lengths):
    """To 1e-4 in float32 at every position, texts of a batch with prompts of different lengths."""
    params, texts = problem()
    lengths = np.array(lengths, np.int32)
    wanted = compiled("jnp")[2](params, texts)
    got = every_logit(spec, params, texts, lengths)
    known = np.arange(T)[None] >= lengths[:, None] - 1
    assert np.isnan(got).any(axis=2).tolist() == (~known).tolist()
    np.testing.assert_allclose(got[known], np.asarray(wanted)[known], rtol=0, atol=1e-4)
    assert np.ptp(np.asarray(wanted)) > 4  # so that 1e-4 is little


@pytest.mark.parametrize("isa", ffi.supported_isas())
def test_a_text_has_the_same_logits_alone(use_isa, isa):
    """Bit for bit, with the kernels of the CPU."""
    use_isa(isa)
    params, texts = problem()
    lengths = np.array([7, 20, 1], np.int32)
    together = every_logit("ffi", params, texts, lengths)
    for row in range(B):
        alone = every_logit("ffi", params, texts[row : row + 1], lengths[row : row + 1])
        assert np.array_equal(alone[0], together[row], equal_nan=True)


@pytest.mark.parametrize("spec", ["jnp", "auto"])
def test_bfloat16_logits_are_as_close_as_those_of_the_whole_text(spec):
    """Against float32: at most twice as far as the bfloat16 logits without a cache."""
    params, texts = problem()
    wanted = np.asarray(compiled("jnp")[2](params, texts))
    half = gpt2.cast(jax.tree.map(jnp.asarray, params), jnp.bfloat16)
    uncached = np.asarray(compiled(spec)[2](half, texts))
    cached = every_logit(spec, half, texts, np.ones(B, np.int32))
    assert np.sqrt(np.mean((cached - wanted) ** 2)) < 2 * np.sqrt(np.mean((uncached - wanted) ** 2))
