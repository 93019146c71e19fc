"""Batches of token sequences from shards.

The unit is the sequence: T tokens and the one after them. A batch is the next rows of one
endless order of sequences (order.py), and the position in it is all the state.
"""

import bisect
import itertools
import zlib

import numpy as np

from llmc_jax.config import BadInput
from llmc_jax.data.order import CounterOrder, LlmcOrder
from llmc_jax.data.tokens import find_shards, read_shard

SAMPLED = 4096  # tokens at each end of a shard that identify it


class TokenLoader:
    """Reads sequences of T tokens from the shards that a glob names."""

    def __init__(
        self,
        flag: str,
        pattern: str,
        *,
        T: int,
        V: int,
        shuffle: bool = False,
        seed: int = 0,
        llmc: tuple[int, int] | None = None,
    ):
        """flag: the option `pattern` came from, for errors. V: tokens must be below it.

        shuffle: visit the sequences in an order drawn anew for each epoch from `seed`; else in
        the order of the files. llmc: (B, ranks) for llm.c's order, whose seed is its own. Raises
        BadInput for a missing, broken or too small shard.
        """
        self.T, self.V = T, V
        self.paths = find_shards(flag, pattern)
        self.shards = [read_shard(path) for path in self.paths]
        counts = [max(0, (len(shard) - 1) // T) for shard in self.shards]
        self.ends = list(itertools.accumulate(counts))  # sequences up to and with each shard
        if self.ends[-1] == 0:
            raise BadInput(
                f"--{flag}={pattern} holds no sequence of {T} tokens and one more; "
                f"lower --sequence_length or prepare more text."
            )
        if llmc:
            B, ranks = llmc
            self.order = LlmcOrder(counts, B=B, ranks=ranks, shuffle=shuffle)
        else:
            self.order = CounterOrder(self.ends[-1], shuffle=shuffle, seed=seed)
        self.position = 0  # sequences read since the start of the run

    @property
    def num_sequences(self) -> int:
        """Sequences in an epoch."""
        return self.order.num_sequences

    def describe(self) -> dict:
        """What tells these data from others: shards, sequences, a checksum of sizes and ends."""
        checksum = 0
        for shard in self.shards:
            checksum = zlib.crc32(np.int64(len(shard)).tobytes(), checksum)
            for part in (shard[:SAMPLED], shard[-SAMPLED:]):
                checksum = zlib.crc32(np.ascontiguousarray(part), checksum)
        return dict(shards=len(self.shards), sequences=self.ends[-1], checksum=checksum)

    def next(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The next `count` sequences: inputs and targets, (count, T) int32."""
        order = self.order.index(self.position, count)
        tokens = np.stack([self._sequence(index) for index in order])
        self.position += count
        return tokens[:, :-1], tokens[:, 1:]

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
