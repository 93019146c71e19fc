"""Batches of token sequences from shards.

The unit is the sequence: T tokens and the one after them. A batch is the next rows of one
endless order of sequences, so which tokens a step sees depends neither on the number of devices
nor on how a step is split into micro-batches, and the position in the order is all the state.
"""

import bisect
import itertools

import numpy as np

from llmc_jax.config import BadInput
from llmc_jax.data.permutation import permute
from llmc_jax.data.tokens import find_shards, read_shard


class TokenLoader:
    """Reads sequences of T tokens from the shards that a glob names."""

    def __init__(
        self, flag: str, pattern: str, *, T: int, V: int, shuffle: bool = False, seed: int = 0
    ):
        """flag: the option `pattern` came from, for errors. V: tokens must be below it.

        shuffle: visit the sequences in an order drawn anew for each epoch from `seed`; else in
        the order of the files. Raises BadInput for a missing, broken or too small shard.
        """
        self.T, self.V, self.shuffle, self.seed = T, V, shuffle, seed
        self.paths = find_shards(flag, pattern)
        self.shards = [read_shard(path) for path in self.paths]
        counts = [max(0, (len(shard) - 1) // T) for shard in self.shards]
        self.ends = list(itertools.accumulate(counts))  # sequences up to and with each shard
        if self.num_sequences == 0:
            raise BadInput(
                f"--{flag}={pattern} holds no sequence of {T} tokens and one more; "
                f"lower --sequence_length or prepare more text."
            )
        self.position = 0  # sequences read since the start of the run

    @property
    def num_sequences(self) -> int:
        """Sequences in an epoch."""
        return self.ends[-1]

    def next(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The next `count` sequences: inputs and targets, (count, T) int32."""
        tokens = np.stack([self._sequence(index) for index in self._order(count)])
        self.position += count
        return tokens[:, :-1], tokens[:, 1:]

    def _order(self, count: int) -> np.ndarray:
        """Indices of the next `count` sequences; epochs follow each other without a gap."""
        positions = np.arange(self.position, self.position + count)
        epochs, index = np.divmod(positions, self.num_sequences)
        if self.shuffle:
            for epoch in np.unique(epochs):
                here = epochs == epoch
                index[here] = permute(index[here], self.num_sequences, self.seed, int(epoch))
        return index

    def _sequence(self, index: int) -> np.ndarray:
        """The T+1 tokens of sequence `index`, int32."""
        number = bisect.bisect_right(self.ends, index)
        start = (index - (self.ends[number - 1] if number else 0)) * self.T
        tokens = self.shards[number][start : start + self.T + 1].astype(np.int32)
        if (largest := tokens.max()) >= self.V:
            raise BadInput(
                f"{self.paths[number]} has token {largest} near position {start}, but the "
                f"vocabulary ends at {self.V - 1}; prepare it with the GPT-2 tokenizer."
            )
        return tokens
