"""How unusual a loss or a gradient norm is, among the last 128 (llm.c outlier_detector.h).

Two things differ from llm.c: what is not finite never enters a window, where it would make every
later score NaN, and the windows are part of the state that checkpoints keep.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

WINDOW = 128


class Window(NamedTuple):
    """The last values of one quantity."""

    values: Array  # (WINDOW,) float32, a ring
    count: Array  # int32, values that ever came in


def empty_window() -> Window:
    """A window before the first value."""
    return Window(jnp.zeros(WINDOW, jnp.float32), jnp.int32(0))


def add(window: Window, value) -> tuple[Window, Array]:
    """The window with `value` in the place of its oldest, and the value's z-score in it.

    The score counts the new value too; it is NaN for the first WINDOW values and for one that is
    not finite (which the window then does not take), and 0 where all values are equal.
    """
    finite = jnp.isfinite(value)
    place = jnp.arange(WINDOW) == window.count % WINDOW
    values = jnp.where(place & finite, value, window.values)
    mean = jnp.mean(values)
    std = jnp.sqrt(jnp.mean(jnp.square(values - mean)))
    score = jnp.where(std > 0, (value - mean) / std, 0)
    known = finite & (window.count >= WINDOW)
    return Window(values, window.count + finite), jnp.where(known, score, jnp.nan)
