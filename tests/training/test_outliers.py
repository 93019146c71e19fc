"""z-scores of losses and gradient norms, against llm.c's definition in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from llmc_jax.training.outliers import WINDOW, add, empty_window


def scores(values) -> np.ndarray:
    _, zscores = jax.lax.scan(add, empty_window(), jnp.asarray(values, jnp.float32))
    return np.asarray(zscores)


def test_the_score_is_llm_cs():
    """NaN until 128 values came in; then among the last 128, the new one included."""
    values = np.random.default_rng(0).normal(3, 0.5, 400).astype(np.float32)
    got = scores(values)
    assert np.isnan(got[:WINDOW]).all()
    for i in range(WINDOW, len(values)):
        last = values[i - WINDOW + 1 : i + 1].astype(np.float64)
        np.testing.assert_allclose(got[i], (values[i] - last.mean()) / last.std(), atol=1e-4)


def test_equal_values_are_no_outliers():
    assert (scores(np.full(WINDOW + 3, 2.5))[WINDOW:] == 0).all()


def test_what_is_not_finite_leaves_the_window_alone():
    values = np.random.default_rng(1).normal(size=WINDOW + 2).astype(np.float32)
    with_gaps = np.insert(values, [5, WINDOW, WINDOW + 1], [np.nan, np.inf, -np.inf])
    got = scores(with_gaps)
    assert np.isnan(got[~np.isfinite(with_gaps)]).all()
    np.testing.assert_array_equal(got[np.isfinite(with_gaps)], scores(values))
