"""Attention from a cache is attention, and its kernel is as close to it as jnp."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmc_jax import ffi, ops
from llmc_jax.ops import attention
from llmc_jax.ops.attention import _heads

SHAPES = [(3, 5, 2, 16), (1, 1, 1, 7), (2, 40, 3, 64), (2, 70, 1, 100), (1, 33, 2, 4)]


def problem(shape, dtype):
    """qkv of a text for each row, a cache filled with other numbers behind it, and positions."""
    B, S, NH, HS = shape
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.normal(size=(B, S, 3 * NH * HS)), jnp.float32).astype(jnp.bfloat16)
    qkv = values.astype(dtype)
    _, k, v = _heads(qkv, NH)
    position = np.minimum(rng.integers(0, S, B), S - 1).astype(np.int32)
    position[0] = S - 1
    new = jnp.take_along_axis(qkv, jnp.asarray(position)[:, None, None], axis=1)
    later = jnp.arange(S)[None, None, :, None] >= position[:, None, None, None]  # and the new one
    junk = [jnp.where(later, jnp.asarray(1e3, dtype), x) for x in (k, v)]
    return qkv, new, *junk, position


@pytest.mark.parametrize("isa", ffi.supported_isas())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_attention_of_the_last_token(use_isa, shape, dtype, isa):
    """The kernel at most twice as far from attention in float64 as jnp is, plus a rounding."""
    use_isa(isa)
    NH = shape[2]
    qkv, new, keys, values, position = problem(shape, jnp.dtype(dtype))
    with jax.enable_x64(True):
        wide = jnp.asarray(np.asarray(qkv, np.float64))
        exact = np.asarray(attention.forward(wide, NH=NH)[0])
    exact = np.take_along_axis(exact, position[:, None, None], axis=1)
    errors = {}
    for name, forward in ops.TABLE["cached_attention"].items():
        run = jax.jit(forward, static_argnames="NH", donate_argnums=(1, 2))
        out, *cache = run(new, jnp.copy(keys), jnp.copy(values), position, NH=NH)
        errors[name] = np.max(np.abs(np.asarray(out, np.float64) - exact))
        for got, old, part in zip(cache, (keys, values), (1, 2), strict=True):
            wanted = np.array(old)
            rows = np.split(np.asarray(new)[:, 0], 3, axis=1)[part].reshape(shape[0], NH, -1)
            wanted[np.arange(shape[0]), :, position] = rows
            assert np.array_equal(np.asarray(got), wanted)
    rounding = float(jnp.finfo(dtype).eps) * np.max(np.abs(exact))
    assert errors["ffi"] <= 2 * errors["jnp"] + rounding and errors["jnp"] <= 4 * rounding


@pytest.mark.parametrize("position", [-1, 5])
def test_a_position_that_is_not_in_the_cache_is_refused(position):
    _, new, keys, values, _ = problem((1, 5, 2, 16), jnp.float32)
    run = jax.jit(ops.TABLE["cached_attention"]["ffi"], static_argnames="NH")
    with pytest.raises(Exception, match=rf"position {position} of row 0 is not in a cache of 5"):
        jax.block_until_ready(run(new, keys, values, np.array([position], np.int32), NH=2))
