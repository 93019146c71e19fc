"""A checkpoint gives back what was saved: values, and the trees they hang in."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from llmc_jax.models import gpt2
from llmc_jax.models.gpt2 import Block
from llmc_jax.training import parallel
from llmc_jax.training.checkpoint import Checkpointer
from llmc_jax.training.step import TrainState, init_state
from tests import tiny

MODEL = dataclasses.replace(tiny.MODEL, L=12)  # from ten layers on, names of layers sort oddly


def make_state() -> TrainState:
    """A state whose leaves all differ."""
    shapes = jax.eval_shape(init_state, gpt2.shapes(MODEL))
    leaves, tree = jax.tree.flatten(shapes)
    filled = [jnp.full(x.shape, number, x.dtype) for number, x in enumerate(leaves)]
    return parallel.replicate(tree.unflatten(filled), parallel.make_mesh())


def assert_equal_trees(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and np.array_equal(x, y)


def test_state_and_parameters_come_back_as_they_were(tmp_path):
    state, run = make_state(), dict(config=dict(model="tiny"), loader=dict(position=7))
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(state, run, 3)
    like = parallel.replicated_like(state, parallel.make_mesh())
    with Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 3 and checkpoints.steps() == [3]
        assert checkpoints.restore_run(3) == run
        restored = checkpoints.restore_state(3, like)
    with Checkpointer(tmp_path) as checkpoints:
        params = checkpoints.restore_params(3, like.params)
    assert_equal_trees(restored, state)
    assert_equal_trees(params, state.params)
    assert isinstance(restored.m.block[11], Block) and isinstance(params.block[11], Block)
