"""A step with bad numbers changes nothing but the count of steps."""

import dataclasses

import jax
import numpy as np
import pytest

from llmc_jax import ops
from llmc_jax.models.initialize import initialize
from llmc_jax.ops.adamw import Hyper
from llmc_jax.training import parallel, placement
from llmc_jax.training.outliers import WINDOW, Window
from llmc_jax.training.step import init_state
from tests import quick, tiny
from tests.training.test_step import batch


def run_step(spec="ffi", windows=None, poison=None, **options):
    """(state before, state after, metrics) of one step; windows: losses and norms before it, by
    the state's names; poison: a weight's name, and the number that is put into it."""
    mesh = parallel.make_mesh()
    cfg = tiny.config(max_steps=10, warmup_steps=0, **options)
    step = parallel.map_train_step(ops.select(spec, "cpu")[0], tiny.MODEL, cfg, mesh)
    params = initialize(tiny.MODEL, 42)
    if poison:
        weight, number = poison
        getattr(params, weight).flat[5] = number
    state = init_state(params)
    state = state._replace(m=jax.tree.map(lambda p: p + 1, params), v=jax.tree.map(abs, params))
    for name, values in (windows or {}).items():
        state = state._replace(**{name: Window(np.float32(values), np.int32(WINDOW))})
    before = jax.device_get(state)
    data = placement.split(batch(1, 4), mesh, placement.MICRO_BATCHES)
    arguments = placement.replicate(state, mesh), [], *data
    state, _, metrics = quick.step(step.lower(*arguments), spec)(*arguments)
    return before, jax.device_get(state), jax.device_get(metrics)


def same(a, b) -> bool:
    return all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize("spec", ["jnp", "ffi", "emulated"])
def test_a_step_that_is_not_finite_is_skipped(spec):
    before, after, metrics = run_step(spec, poison=("wpe", np.nan))
    assert np.isnan(metrics.loss) and metrics.skipped
    assert same(before[:3], after[:3]) and after.step == 1
    assert after.losses.count == after.grad_norms.count == 0


def test_a_step_whose_norm_alone_is_not_finite_is_skipped():
    """The gradients' squares are beyond float32."""
    before, after, metrics = run_step(poison=("lnfw", 1e20))
    assert np.isfinite(metrics.loss) and np.isinf(metrics.grad_norm) and metrics.skipped
    assert same(before[:3], after[:3])
    assert after.losses.count == 1 and after.grad_norms.count == 0


def test_a_step_with_good_numbers_is_made():
    before, after, metrics = run_step()
    assert not metrics.skipped and not same(before.params, after.params)
    assert after.losses.count == 1 and after.losses.values[0] == metrics.loss
    assert after.grad_norms.values[0] == metrics.grad_norm


@pytest.mark.parametrize(
    ("flag", "own", "other"),
    [("skip_loss_zscore", "losses", "grad_norms"), ("skip_grad_zscore", "grad_norms", "losses")],
)
def test_outliers_are_skipped_above_the_limit(flag, own, other):
    """Its own quantity's, and only above: there were numbers about 1 before, or about 100, and
    now there is one between 1.5 and 50."""
    low, high = (np.random.default_rng(0).normal(mean, 0.01, WINDOW) for mean in (1, 100))
    before, after, metrics = run_step(windows={own: low, other: high}, **{flag: 5.0})
    scores = dict(losses=metrics.loss_zscore, grad_norms=metrics.grad_zscore)
    assert scores[own] > 5 and scores[other] < -5 and metrics.skipped
    assert same(before[:3], after[:3])
    assert after.losses.count == WINDOW + 1  # an outlier that is finite does come in
    assert not run_step(windows={own: high, other: low}, **{flag: 5.0})[2].skipped
    assert not run_step(windows={own: low, other: low}, **{flag: 20.0})[2].skipped
    assert not run_step(windows={own: low, other: low})[2].skipped
    assert not run_step(**{flag: 0.001})[2].skipped  # not before the window is full


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("spec", ["jnp", "ffi", "emulated"])
def test_no_update_without_a_finite_scale(spec, scale):
    """Bit for bit, whatever the gradients are, for every implementation of AdamW."""
    rng = np.random.default_rng(3)
    shapes = [(1,), (65,), (48, 17)]
    trees = [[rng.normal(size=s).astype(np.float32) for s in shapes] for _ in range(4)]
    trees[1][1][7] = np.nan
    hyper = Hyper(np.float32(0.1), np.float32(scale), np.int32(2), 0.9, 0.95, 1e-8)

    adamw = ops.select(spec, "cpu")[0].adamw

    @jax.jit
    def run(trees, scale):
        return adamw(*trees, hyper._replace(scale=scale), weight_decay=[0.1, 0.0, 0.1])

    assert same(run(trees, hyper.scale), (trees[0], trees[2], trees[3]))


def test_the_window_is_of_the_options_that_may_change():
    changeable = {f.name for f in dataclasses.fields(tiny.config()) if f.metadata["may_change"]}
    assert {"skip_loss_zscore", "skip_grad_zscore", "max_bad_steps"} <= changeable
