"""Batches of token sequences from shards.

The unit is the sequence: T tokens and the one after them. A batch is some rows of one endless order
of sequences (order.py), and where it begins is all that has to be known: a run goes on anywhere at
no cost. prefetch.py makes batches while the step runs.

Grain (google/grain) would do the same with `MapDataset.shuffle().batch()`. It was measured and left
out (benchmarks/results/loader.md): it handles one sequence at a time, and it knows neither llm.c's
order nor a mix whose place is one number.
"""

import bisect
import itertools
import re
import zlib
from fractions import Fraction
from functools import cached_property

import numpy as np

from llmc_jax.config import BadInput
from llmc_jax.data.order import MILLION, CounterOrder, LlmcOrder, MixedOrder
from llmc_jax.data.tokens import find_shards, read_shards

# What identifies data: so many tokens at each end of a shard, and so many at each of these places,
# which are spread over all shards together. Of 2 million tokens that is every one; of many shards
# it is read in a second, where reading all of them would take minutes at every start.
END_TOKENS = 4096
PLACES, PLACE_TOKENS = 1024, 2048


class TokenLoader:
    """Reads sequences of T tokens from the shards that a pattern names.

    A pattern is some globs separated by commas. Where each has a weight (a*.bin:0.7,b*.bin:0.3), it
    is a set of its own, and the sets are mixed in these shares; else all are one set.
    """

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
        BadInput for a missing, broken or too small shard, and for weights that are no mix.
        """
        self.T, self.V = T, V
        sets = split_weights(flag, pattern)
        paths = [find_shards(flag, globs) for globs, _ in sets]
        self.paths = [path for of_set in paths for path in of_set]
        # As plain arrays: a slice of a numpy.memmap takes longer than to copy what is in it.
        self.shards = [np.asarray(shard) for shard in read_shards(flag, self.paths)]
        counts = [max(0, (len(shard) - 1) // T) for shard in self.shards]
        total = sum(weight for _, weight in sets)
        weights = [str(weight / total) for _, weight in sets]
        self.sets = [[len(files), weight] for files, weight in zip(paths, weights, strict=True)]
        self.ends = list(itertools.accumulate(counts))  # sequences up to and with each shard
        numbers = iter(counts)
        sizes = [sum(itertools.islice(numbers, len(of_set))) for of_set in paths]
        for (globs, _), size in zip(sets, sizes, strict=True):
            if size == 0:
                raise BadInput(
                    f"--{flag}={globs} holds no sequence of {T} tokens and one more; "
                    f"lower --sequence_length or prepare more text."
                )
        orders = [CounterOrder(size, shuffle=shuffle, seed=seed) for size in sizes]
        if len(sets) > 1:
            if llmc:
                raise BadInput(
                    f"--{flag}={pattern} is a mix, which --shuffle_order=llmc does not know; "
                    f"leave out the weights, or take --shuffle_order=counter."
                )
            self.order = MixedOrder(orders, [weight for _, weight in sets])
        elif llmc:
            self.order = LlmcOrder(counts, B=llmc[0], ranks=llmc[1], shuffle=shuffle)
        else:
            (self.order,) = orders

    @property
    def num_sequences(self) -> int:
        """Sequences in an epoch."""
        return self.order.num_sequences

    @cached_property
    def description(self) -> dict:
        """What tells these data from others, wherever they lie: shards, sequences, a checksum of
        sizes and ends, one of places in between, and the shards and the share of each set."""
        checksum = 0
        for shard in self.shards:
            checksum = zlib.crc32(np.int64(len(shard)).tobytes(), checksum)
            for part in (shard[:END_TOKENS], shard[-END_TOKENS:]):
                checksum = zlib.crc32(np.ascontiguousarray(part), checksum)
        return dict(
            shards=len(self.shards),
            sequences=self.ends[-1],
            checksum=checksum,
            sampled=_sampled(self.shards),
            sets=self.sets,
        )

    def read(
        self, position: int, count: int, *, rows: np.ndarray | slice = slice(None)
    ) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of the `count` sequences from `position` on, (count, T) int32.

        position: sequences read since the start of the run. rows: only these of the batch, for a
        process that has a part of it. Raises BadInput for a token outside the vocabulary.
        """
        order = self.order.index(position, count)[rows]
        inputs, targets = np.empty((2, len(order), self.T), np.int32)
        for row, index in enumerate(order.tolist()):
            tokens = self._sequence(index)
            inputs[row], targets[row] = tokens[:-1], tokens[1:]
        return inputs, targets

    def _sequence(self, index: int) -> np.ndarray:
        """The T+1 tokens of sequence `index`, as they lie in the shard."""
        number = bisect.bisect_right(self.ends, index)
        start = (index - (self.ends[number - 1] if number else 0)) * self.T
        tokens = self.shards[number][start : start + self.T + 1]
        if (largest := tokens.max()) >= self.V:
            raise BadInput(
                f"{self.paths[number]} has token {largest} near position {start}, but the "
                f"vocabulary ends at {self.V - 1}; prepare it with the GPT-2 tokenizer."
            )
        return tokens


def _sampled(shards: list[np.ndarray]) -> int:
    """Checksum of PLACES places, the same whenever the sizes are: the shards are cut into as many
    stretches, and one place drawn in each, so that there is none without."""
    total = sum(map(len, shards))
    checksum, drawn = 0, 0
    for shard in shards:
        count = -(-PLACES * len(shard) // total)
        cuts = [number * len(shard) // count for number in range(count + 1)]
        for begin, end in itertools.pairwise(cuts):
            drawn = (drawn + 0x9E3779B9) % 2**32  # the golden ratio: evenly, and in no rhythm
            begin += max(0, end - begin - PLACE_TOKENS) * drawn >> 32
            part = shard[begin : min(end, begin + PLACE_TOKENS)]
            checksum = zlib.crc32(np.ascontiguousarray(part), checksum)
    return checksum


def split_weights(flag: str, pattern: str) -> list[tuple[str, Fraction]]:
    """The sets of a pattern: (its globs, its weight). Raises BadInput where they are no mix."""
    parts = [re.fullmatch(r"(.+):(\d+\.?\d*|\.\d+)", part) for part in pattern.split(",")]
    if not any(parts):
        return [(pattern, Fraction(1))]
    if not all(parts):
        raise BadInput(
            f"--{flag}={pattern} has weights for some globs only; give each one "
            f"(a*.bin:0.7,b*.bin:0.3), or none to read them as one set."
        )
    weights = [Fraction(part[2]) for part in parts]
    if not sum(weights) or min(weights) * MILLION < sum(weights):
        raise BadInput(
            f"--{flag}={pattern}: a weight is at least a millionth of their sum; leave out what is "
            f"not to be read."
        )
    return [(part[1], weight) for part, weight in zip(parts, weights, strict=True)]
