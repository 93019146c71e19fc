"""Losses of tokens after others: rows of any length, in batches of like length, on all devices.

A row's numbers do not depend on which rows it shares a batch with: it is padded to a length that
follows from its own, and rows do not look at each other.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm import tqdm

from llmc_jax.config import ModelConfig
from llmc_jax.models import gpt2
from llmc_jax.models.gpt2 import Params
from llmc_jax.models.lengths import padded_length
from llmc_jax.ops import Ops, classifier
from llmc_jax.training import parallel, placement

IGNORED = -1  # as a target


class Row(NamedTuple):
    """Tokens, of which the last ones are scored."""

    tokens: Sequence[int]  # at most T + 1: the last one is only predicted
    scored: int  # from 1 to len(tokens) - 1


class Score(NamedTuple):
    """What a model says of the scored tokens of a row."""

    losses: np.ndarray  # (scored,) float32, nats
    likeliest: np.ndarray | None  # (scored,) bool: no token was likelier; None: not asked for


def make_scorer(
    ops: Ops,
    model: ModelConfig,
    dtype: str,
    mesh,
    *,
    batch_size: int,
    likeliest: bool = False,
    progress: bool = False,
) -> Callable[..., list[Score]]:
    """A function score(params, rows) -> a Score for each row, in their order.

    params: float32, on all devices. It also takes `look`, a function that it calls before each
    batch; what that raises ends it. batch_size: rows on each device at a time. likeliest: also
    say where the token was the likeliest, which takes the logits, a row at a time. progress: draw
    a bar of the batches, on a terminal.
    """
    size = batch_size * mesh.size

    def step(params, inputs, targets):
        """inputs, targets (B,T); a tuple of (B,T): losses and, if asked for, hits."""
        losses, acts = gpt2.forward(ops, params, inputs, targets, None, cfg=model)
        if not likeliest:
            return (losses,)
        return losses, _best(acts.lnf, params.wte, model.V) == targets

    step = parallel.map_row_step(step, mesh)
    cast = jax.jit(lambda params: gpt2.cast(params, dtype))

    def score(
        params: Params, rows: Sequence[Row], *, look: Callable[[], None] = lambda: None
    ) -> list[Score]:
        params, scores = cast(params), [None] * len(rows)

        def collect(indices, results):
            results = placement.to_host(results)
            for place, index in enumerate(indices):
                end = len(rows[index].tokens) - 1
                of_row = [x[place, end - rows[index].scored : end] for x in results]
                scores[index] = Score(of_row[0], of_row[1] if likeliest else None)

        pending = None
        batches = list(_batches(rows, size, model.maxT))
        for T, indices in tqdm(batches, leave=False, disable=None if progress else True):
            look()
            padded = _pad([rows[i] for i in indices], size, T)
            arrays = placement.split(padded, mesh, placement.ROWS)
            dispatched = indices, step(params, *arrays)
            if pending:  # read while the next batch is computed
                collect(*pending)
            pending = dispatched
        if pending:
            collect(*pending)
        return scores

    return score


def _batches(rows: Sequence[Row], size: int, longest: int) -> Iterator[tuple[int, list[int]]]:
    """(T, the numbers of at most `size` rows); the longest come first: if memory does not do for
    them, that is known at once."""
    of_length = defaultdict(list)
    for index, row in enumerate(rows):
        of_length[padded_length(len(row.tokens) - 1, longest)].append(index)
    for T in sorted(of_length, reverse=True):
        indices = of_length[T]
        for begin in range(0, len(indices), size):
            yield T, indices[begin : begin + size]


def _pad(rows: list[Row], size: int, T: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets (size, T) int32; what is not scored is ignored, missing rows too."""
    inputs = np.zeros((size, T), np.int32)
    targets = np.full((size, T), IGNORED, np.int32)
    for place, row in enumerate(rows):
        tokens = np.asarray(row.tokens, np.int32)
        end = len(tokens) - 1
        inputs[place, :end] = tokens[:-1]
        targets[place, end - row.scored : end] = tokens[-row.scored :]
    return inputs, targets


def _best(lnf, wte, V: int):
    """The likeliest token of each place; lnf (B,T,C), result (B,T) int32."""

    def of_row(lnf):
        return jnp.argmax(classifier.logits(lnf[None], wte)[:, :V], axis=1).astype(jnp.int32)

    return lax.map(of_row, lnf)
