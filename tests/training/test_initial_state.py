"""The state a run begins with: what becomes of the weights that --model read."""

import weakref

import jax
import numpy as np

from llmc_jax.models import gpt2
from llmc_jax.models.initialize import initialize
from llmc_jax.training.initial_state import placed
from tests import tiny


def test_weights_go_as_they_are_placed():
    given = jax.tree.map(np.array, initialize(tiny.MODEL, seed=1))
    expected = jax.tree.map(np.copy, given)
    references = [weakref.ref(leaf) for leaf in jax.tree.leaves(given)]
    weights, alive = [given], []
    del given

    def place(leaf):
        copy = leaf.copy()
        del leaf
        alive.append(sum(reference() is not None for reference in references))
        return copy

    params = placed(weights, place)
    assert weights == []
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    total = len(jax.tree.leaves(gpt2.shapes(tiny.MODEL)))
    assert len(alive) == total
    # the one being placed may be held by whoever calls
    assert all(n <= total - i for i, n in enumerate(alive))
