"""Losses of rows are the model's, whatever they are batched with and on however many devices."""

import dataclasses
import json
import os
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest

from llmc_jax import ops
from llmc_jax.evaluation.multiple_choice import Answer, accuracy, answer
from llmc_jax.evaluation.scorer import Row, make_scorer
from llmc_jax.interop.llmc_text import Example
from llmc_jax.models import gpt2
from llmc_jax.training import parallel, placement
from tests import quick, tiny

MODEL = dataclasses.replace(tiny.MODEL, maxT=33)


def params(model=MODEL, scale=0.2):
    rng = np.random.default_rng(0)
    shapes = gpt2.shapes(model)
    return jax.tree.map(lambda s: (scale * rng.normal(size=s.shape)).astype(np.float32), shapes)


def rows(count=23):
    """Rows of some lengths up to the longest, of which from 1 token to all but one are scored."""
    rng = np.random.default_rng(1)
    lengths = [2, 33, *rng.choice([2, 12, 25, 33], count - 2)]
    return [Row(rng.integers(0, MODEL.V, n).tolist(), int(rng.integers(1, n))) for n in lengths]


def scores(*, batch_size, spec="ffi", dtype="float32"):
    """The losses and hits of the rows, one after another."""
    mesh = parallel.make_mesh()
    chosen, _ = ops.select(spec, "cpu")
    options = dict(batch_size=batch_size, likeliest=True)
    score = make_scorer(chosen, MODEL, dtype, mesh, **options)
    found = score(placement.replicate(params(), mesh), rows())
    return [np.concatenate(column) for column in zip(*found, strict=True)]


@pytest.fixture(scope="module")
def by_logits():
    """Losses and hits of each row by itself, without padding."""
    chosen, _ = ops.select("jnp", "cpu")
    logits = quick.jit(partial(gpt2.logits, chosen, cfg=MODEL))
    losses, hits = [], []
    for tokens, scored in rows():
        inputs = np.array([tokens[:-1]], np.int32)
        z = np.asarray(logits(params(), inputs)[0], np.float64)[-scored:]
        targets = np.array(tokens[-scored:])
        total = np.log(np.exp(z - z.max(axis=1, keepdims=True)).sum(axis=1)) + z.max(axis=1)
        losses.append(total - z[np.arange(scored), targets])
        hits.append(z.argmax(axis=1) == targets)
    return np.concatenate(losses), np.concatenate(hits)


@pytest.mark.parametrize("spec", ["jnp", "ffi"])
def test_rows_are_scored_as_if_each_were_alone(spec, by_logits):
    losses, hits = scores(batch_size=4, spec=spec)
    np.testing.assert_allclose(losses, by_logits[0], atol=2e-5)
    assert np.array_equal(hits, by_logits[1])


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_the_batch_size_changes_nothing(batch_size, by_logits):
    """Also where the last batch is not full, or the only one is not."""
    losses, hits = scores(batch_size=batch_size)
    np.testing.assert_allclose(losses, by_logits[0], atol=2e-5)
    assert np.array_equal(hits, by_logits[1])


PROGRAM = """
import json, jax
from llmc_jax import ffi
from tests.evaluation.test_scorer import scores
ffi.require("cpu")
assert jax.device_count() == 3
print(json.dumps([[column.tolist() for column in scores(batch_size=n)] for n in (1, 3)]))
"""


def test_the_number_of_devices_changes_nothing(by_logits):
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "3"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    for losses, hits in json.loads(result.stdout):
        np.testing.assert_allclose(losses, by_logits[0], atol=2e-5)
        assert hits == by_logits[1].tolist()


def test_sums_and_means_choose_each_for_itself():
    """The sum prefers the short ending, the mean the long one."""

    def score(params, rows):
        assert rows == [Row([1, 2], 1), Row([1, 3, 4, 5], 3)]
        losses = ([2.0], [1.0, 1.0, 1.0])
        return [type("Score", (), dict(losses=np.array(x, np.float32))) for x in losses]

    (got,) = answer(score, None, [Example([1], [[2], [3, 4, 5]], 1)])
    assert got == Answer(1, [2.0, 3.0], [2.0, 1.0])
    assert (got.choice, got.choice_norm) == (0, 1)
    result = accuracy([got, got._replace(label=0), got, got])
    assert result == (0.25, pytest.approx(0.1875**0.5 / 2), 0.75, result.acc_stderr, 4)
