"""The loss of a model on text: nats a token, perplexity, bits a byte."""

import math
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np

from llmc_jax.config import BadInput, ModelConfig
from llmc_jax.data.loader import split_weights
from llmc_jax.data.tokenizer import EOT, tokenizer
from llmc_jax.data.tokens import find_shards, read_shards
from llmc_jax.evaluation.scorer import Row
from llmc_jax.models.gpt2 import Params

ROWS_AT_A_TIME = 4096  # whose losses are kept until they are added up


class Loss(NamedTuple):
    """What a split costs a model."""

    loss: float  # mean over the tokens, nats
    perplexity: float  # exp(loss)
    bits_per_byte: float | None  # of the text; None where the tokens are not GPT-2's
    tokens: int
    bytes: int | None


def byte_lengths(model: ModelConfig) -> np.ndarray | None:
    """Bytes of text that each token stands for, 0 for the end of a text; None where the model's
    vocabulary is not GPT-2's."""
    if model.V != EOT + 1:
        return None
    decode = tokenizer().decode_single_token_bytes
    return np.array([len(decode(token)) for token in range(EOT)] + [0])


def read_rows(
    flag: str, pattern: str, *, model: ModelConfig, T: int, sequences: int | None = None
) -> Iterator[Row]:
    """All tokens of the shards but the first of each, in order, predicted T at a time.

    What is left at a shard's end is a shorter row. sequences: only so many rows of T tokens, those
    of training's validation, which passes over what is left. Weights, which training may have had,
    are passed over: every text counts as it is. Raises BadInput where a shard is missing or broken,
    where there is nothing to predict, or a token is none of the model's.
    """
    sets = split_weights(flag, pattern)
    paths = [path for globs, _ in sets for path in find_shards(flag, globs)]
    shards = read_shards(flag, paths)
    if all(len(tokens) < 2 for tokens in shards):
        raise BadInput(f"--{flag}={pattern} holds no two tokens; prepare more text.")
    if sequences is None:
        return _rows(paths, shards, model.V, T, least=1)
    if all(len(tokens) <= T for tokens in shards):
        raise BadInput(
            f"--{flag}={pattern} holds no sequence of {T} tokens and one more; leave out "
            f"--val_batches, lower --sequence_length or prepare more text."
        )
    return islice(_rows(paths, shards, model.V, T, least=T), min(sequences, sys.maxsize))


def _rows(
    paths: list[str], shards: list[np.ndarray], V: int, T: int, *, least: int
) -> Iterator[Row]:
    """least: how many tokens a row predicts at least."""
    for path, shard in zip(paths, shards, strict=True):
        for begin in range(0, len(shard) - least, T):
            tokens = shard[begin : begin + T + 1]
            if (largest := tokens.max()) >= V:
                raise BadInput(
                    f"{path} has token {largest} near position {begin}, but the model's "
                    f"vocabulary ends at {V - 1}; prepare it with the model's tokenizer."
                )
            yield Row(tokens, len(tokens) - 1)


def total_loss(
    score: Callable, params: Params, rows: Iterator[Row], lengths: np.ndarray | None
) -> Loss:
    """The loss over all rows. score: of scorer.make_scorer; lengths: of byte_lengths."""
    nats, tokens, size = 0.0, 0, 0
    while some := list(islice(rows, ROWS_AT_A_TIME)):
        for row, scored in zip(some, score(params, some), strict=True):
            nats += float(scored.losses.sum(dtype=np.float64))
            tokens += row.scored
            if lengths is not None:
                size += int(lengths[row.tokens[-row.scored :]].sum())
    loss = nats / tokens
    bits = nats / math.log(2) / size if size else None
    return Loss(loss, _exp(loss), bits, tokens, size if lengths is not None else None)


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf  # NaN stays NaN
