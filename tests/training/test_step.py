"""The training step: optimizer, clipping, accumulation, devices, memory."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llmc_jax import ops
from llmc_jax.models import gpt2
from llmc_jax.models.initialize import initialize
from llmc_jax.training import parallel, placement
from llmc_jax.training.rooms import make_rooms
from llmc_jax.training.step import init_state
from tests import quick, tiny

T = 16
# Its own number is nothing to most tests, but one number for many is one program to compile.
EPS = 1e-3


def batch(A: int, B: int):
    rows = tiny.tokens(A * B * (T + 1)).astype(np.int32).reshape(A, B, T + 1)
    return rows[..., :-1], rows[..., 1:]


def make_step(A=1, B=4, spec="ffi", **options):
    """The mapped step of A * B sequences, a fresh state on all devices and the rooms.

    By the kernels, unless told otherwise: a step of jnp takes XLA ten times as long to compile.
    """
    mesh = parallel.make_mesh()
    sizes = dict(batch_size=B // mesh.size, sequence_length=T, total_batch_size=A * B * T)
    cfg = tiny.config(max_steps=10, **sizes, **options)
    chosen, _ = ops.select(spec, "cpu")
    state = placement.replicate(init_state(initialize(tiny.MODEL, 42)), mesh)
    rooms = make_rooms(chosen, tiny.MODEL, cfg, mesh)
    return parallel.map_train_step(chosen, tiny.MODEL, cfg, mesh), state, rooms, mesh


def run_steps(count=3, A=1, B=4, spec="ffi", **options):
    """(params, [metrics]) after `count` steps on one batch of A * B sequences."""
    step, state, rooms, mesh = make_step(A, B, spec, **options)
    data = placement.split(batch(A, B), mesh, placement.MICRO_BATCHES)
    step = quick.step(step.lower(state, rooms, *data), spec)
    metrics = []
    for _ in range(count):
        state, rooms, m = step(state, rooms, *data)
        metrics.append(jax.device_get(m))
    return jax.device_get(state.params), metrics


def assert_trees_close(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


@pytest.mark.parametrize("grad_clip", [1.0, 100.0, 0.0])
def test_the_update_is_optaxs_adamw_with_clipping(grad_clip):
    """Decay on matrices only, bias correction, clipping by the global norm: three steps.

    A large epsilon, because the gradient of the keys' bias is 0 but for rounding, and Adam would
    make whole steps of it.
    """
    options = dict(grad_clip=grad_clip, adam_eps=EPS)
    params, metrics = run_steps(**options)
    cfg = tiny.config(max_steps=10, **options)
    chosen, _ = ops.select("jnp", "cpu")
    inputs, targets = (jnp.asarray(x[0]) for x in batch(1, 4))

    @quick.jit
    @jax.value_and_grad
    def loss_and_grads(p):
        dlosses = jnp.full(inputs.shape, 1 / inputs.size)
        return jnp.mean(gpt2.forward(chosen, p, inputs, targets, dlosses, cfg=tiny.MODEL)[0])

    rates = [1e-2 / 2, 1e-2, 1e-2]  # two steps of warm-up, then the top of the cosine
    optimizer = optax.chain(
        optax.clip_by_global_norm(grad_clip) if grad_clip else optax.identity(),
        optax.adamw(
            lambda count: jnp.array(rates)[count], b1=cfg.adam_beta1, b2=cfg.adam_beta2,
            eps=cfg.adam_eps, weight_decay=cfg.weight_decay,
            mask=partial(jax.tree.map, gpt2.is_matrix),
        ),
    )  # fmt: skip
    expected = jax.tree.map(jnp.asarray, initialize(tiny.MODEL, 42))
    opt_state = optimizer.init(expected)
    update = quick.jit(optimizer.update)
    for m in metrics:
        loss, grads = loss_and_grads(expected)
        np.testing.assert_allclose(m.loss, loss, rtol=1e-5)
        np.testing.assert_allclose(m.grad_norm, optax.tree.norm(grads), rtol=1e-4)
        updates, opt_state = update(grads, opt_state, expected)
        expected = optax.apply_updates(expected, updates)
    assert 1 < metrics[0].grad_norm < 100  # else clipping was not tried, or not left alone
    assert_trees_close(params, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_micro_batches_add_up_to_the_whole_batch(dtype):
    """Same sequences in one micro-batch of 4 or in four of 1: same loss, same update."""
    whole, m_whole = run_steps(A=1, B=4, dtype=dtype, adam_eps=EPS)
    parts, m_parts = run_steps(A=4, B=1, dtype=dtype, adam_eps=EPS)
    rtol = 1e-5 if dtype == "float32" else 5e-3
    for a, b in zip(m_whole, m_parts, strict=True):
        np.testing.assert_allclose(a.loss, b.loss, rtol=rtol)
        np.testing.assert_allclose(a.grad_norm, b.grad_norm, rtol=10 * rtol)
    assert_trees_close(whole, parts, rtol=100 * rtol, atol=rtol)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_left_in_their_factors_make_the_same_update(dtype):
    """As --recompute=2 leaves them for so few tokens, and 1 does not."""
    how = dict(A=1, B=1, dtype=dtype, adam_eps=EPS, spec="ffi")
    whole, m_whole = run_steps(recompute=1, **how)
    factors, m_factors = run_steps(recompute=2, **how)
    rtol = 1e-5 if dtype == "float32" else 5e-3
    for a, b in zip(m_whole, m_factors, strict=True):
        np.testing.assert_allclose((a.loss, a.grad_norm), (b.loss, b.grad_norm), rtol=rtol)
    assert m_whole[0].grad_norm > 1  # else clipping was not tried
    assert_trees_close(whole, factors, rtol=100 * rtol, atol=rtol)


def test_gradients_are_accumulated_in_float32():
    """2^12 micro-steps in bfloat16 would stop growing; 64 of them already lose digits.

    The same micro-batch 64 times must give the gradient norm of that batch alone.
    """
    step, state, rooms, mesh = make_step(A=64, dtype="bfloat16", adam_eps=EPS)
    inputs, targets = batch(1, 4)
    repeated = [np.repeat(x, 64, axis=0) for x in (inputs, targets)]
    *_, many = step(state, rooms, *placement.split(repeated, mesh, placement.MICRO_BATCHES))
    step, state, rooms, mesh = make_step(dtype="bfloat16", adam_eps=EPS)
    single = placement.split([inputs, targets], mesh, placement.MICRO_BATCHES)
    *_, once = step(state, rooms, *single)
    np.testing.assert_allclose(many.grad_norm, once.grad_norm, rtol=1e-5)
    np.testing.assert_allclose(many.loss, once.loss, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "A"), [("float32", 1), ("bfloat16", 1), ("bfloat16", 4)])
def test_the_state_is_donated(dtype, A):
    """Parameters, moments and rooms have their places: the program aliases all of them."""
    step, state, rooms, mesh = make_step(A, 4 // A, dtype=dtype, adam_eps=EPS)
    data = placement.split(batch(A, 4 // A), mesh, placement.MICRO_BATCHES)
    planned = step.lower(state, rooms, *data).compile().memory_analysis()
    assert planned.alias_size_in_bytes >= sum(x.nbytes for x in jax.tree.leaves((state, rooms)))


@pytest.mark.parametrize("spec", ["jnp", "ffi"])
def test_bfloat16_stays_near_float32(spec):
    _, exact = run_steps(spec=spec)
    _, rounded = run_steps(spec=spec, dtype="bfloat16")
    for a, b in zip(exact, rounded, strict=True):
        np.testing.assert_allclose(a.loss, b.loss, rtol=2e-2)


def test_fingerprint():
    """Numbers of three steps of the tiny model. If this fails, the training maths has changed.

    If that was meant, check tests/test_golden.py and put the new numbers here.
    """
    _, metrics = run_steps(spec="jnp")
    np.testing.assert_allclose([m.loss for m in metrics], FINGERPRINT, rtol=1e-5)


FINGERPRINT = [4.536535, 4.094717, 3.887121]


PROGRAM = """
import jax
from tests.training.test_step import run_steps
assert jax.device_count() == 2
_, metrics = run_steps(A=2, B=4, spec="ffi")
print(*(float(m.loss) for m in metrics), *(float(m.grad_norm) for m in metrics))
"""


def test_two_devices_give_what_one_gives():
    """The same step mapped over two CPU devices, kernels included."""
    _, metrics = run_steps(A=2, B=4, spec="ffi")
    expected = [float(m.loss) for m in metrics] + [float(m.grad_norm) for m in metrics]
    result = subprocess.run(
        [sys.executable, "-c", "from llmc_jax import ffi; ffi.require('cpu')\n" + PROGRAM],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "2"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(list(map(float, result.stdout.split())), expected, rtol=1e-5)
