"""Which sequence of the shards comes when.

An order is a function from positions (rows read since the start of the run) to indices of
sequences, which are numbered through all shards; the position is all its state.
"""

import functools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from llmc_jax.config import BadInput
from llmc_jax.data.permutation import permute

MILLION = 1_000_000
BLOCK = 2048  # positions computed at once: to draw 64 alone takes half as long


class CounterOrder:
    """Every sequence once an epoch, in the order of the files or in one drawn for each epoch.

    Neither the number of devices nor the size of a batch plays a part.
    """

    def __init__(self, num_sequences: int, *, shuffle: bool, seed: int):
        self.num_sequences, self.shuffle, self.seed = num_sequences, shuffle, seed
        self._size = min(BLOCK, num_sequences)  # more would draw epochs that nobody asked for
        self._block = functools.lru_cache(maxsize=2)(self._compute)

    def index(self, position: int, count: int) -> np.ndarray:
        """Indices of `count` sequences from `position` on; epochs follow without a gap."""
        first, end = position // self._size, -(-(position + count) // self._size)
        blocks = [np.empty(0, np.int64), *map(self._block, range(first, end))]
        return np.concatenate(blocks)[position - first * self._size :][:count]

    def _compute(self, number: int) -> np.ndarray:
        """Indices of the positions of block `number`."""
        positions = np.arange(number * self._size, (number + 1) * self._size)
        epochs, index = np.divmod(positions, self.num_sequences)
        if self.shuffle:
            for epoch in np.unique(epochs):
                here = epochs == epoch
                index[here] = permute(index[here], self.num_sequences, self.seed, int(epoch))
        return index


class MixedOrder:
    """Several sets of sequences, each in an order of its own, in fixed shares.

    After p rows the sets have given their shares of p, to a row or two: the first takes its share
    of the positions evenly, the second its share of those left, and so on. Where a set stands
    follows from the position by one division each, so nothing else need be remembered. A set that
    ends begins anew.
    """

    def __init__(self, orders: Sequence[CounterOrder], weights: Sequence[Fraction]):
        """orders: of each set; its sequences are numbered after those of the sets before it.
        weights: at least a millionth of their sum."""
        self.orders = orders
        self._of_all = [weight / sum(weights) for weight in weights]
        of_left = [weight / sum(weights[i:]) for i, weight in enumerate(weights)]
        # Positions times numerators stay far below 2^63.
        self._of_left = [share.limit_denominator(MILLION) for share in of_left]
        self.first = np.cumsum([0, *(order.num_sequences for order in orders[:-1])])

    @property
    def num_sequences(self) -> int:
        """Sequences until the first of the sets is through: the longest run that repeats none."""
        sets = zip(self.orders, self._of_all, strict=True)
        return int(min(order.num_sequences / share for order, share in sets))

    def index(self, position: int, count: int) -> np.ndarray:
        """Indices of `count` sequences from `position` on."""
        index, left = np.empty(count, np.int64), np.arange(count)
        for order, first, share in zip(self.orders, self.first, self._of_left, strict=True):
            given = np.arange(position, position + len(left) + 1) * share.numerator
            given //= share.denominator  # rows of this set before each position
            its = np.diff(given) == 1
            index[left[its]] = first + order.index(int(given[0]), int(its.sum()))
            left, position = left[~its], position - int(given[0])
        return index


class LlmcOrder:
    """llm.c's order (llmc/dataloader.h), to compare runs batch by batch.

    A sample is ranks * B sequences in a row within a shard, of which rank r reads the r-th B; what
    is left of a shard is not read. Each rank shuffles the shards anew in every epoch, and the
    samples of each shard as it comes to it, with a generator of its own: so the batches depend on
    B, T and the number of devices.
    """

    SEED = 42  # of rank 0; the next rank has the next

    def __init__(self, sequences: Sequence[int], *, B: int, ranks: int, shuffle: bool):
        """sequences: how many each shard holds. Raises BadInput for one without a whole sample."""
        self.B, self.ranks, self.shuffle = B, ranks, shuffle
        self.samples = [count // (ranks * B) for count in sequences]
        if min(self.samples) == 0:
            raise BadInput(
                f"--shuffle_order=llmc needs {ranks * B} sequences in each shard, and one has "
                f"{min(sequences)}; lower --batch_size or take --shuffle_order=counter."
            )
        self.first = np.cumsum([0, *sequences[:-1]])  # index of each shard's first sequence
        self._epochs = [_RankEpochs(self, rank) for rank in range(ranks)]

    @property
    def num_sequences(self) -> int:
        """Sequences in an epoch."""
        return sum(self.samples) * self.ranks * self.B

    def index(self, position: int, count: int) -> np.ndarray:
        """Indices of `count` sequences from `position` on."""
        number, row = np.divmod(np.arange(position, position + count), self.ranks * self.B)
        epoch, sample = np.divmod(number, sum(self.samples))
        starts = np.empty(count, np.int64)
        for rank in range(self.ranks):
            for e in np.unique(epoch):
                here = (row // self.B == rank) & (epoch == e)
                starts[here] = self._epochs[rank].starts(int(e))[sample[here]]
        return starts + row

    def place(self, position: int) -> tuple[int, int]:
        """Where llm.c's rank 0 is when `position` sequences have been read: which shard of the
        epoch it is in, and how many samples of it it has read.

        It opens a shard only to read from it: at the end of one it has read them all.
        """
        number = position // (self.ranks * self.B)
        if number == 0:
            return 0, 0
        epoch, last = divmod(number - 1, sum(self.samples))
        ends = np.cumsum([self.samples[shard] for shard in self._epochs[0].shards(epoch)])
        shard = int(np.searchsorted(ends, last, side="right"))
        return shard, last + 1 - (int(ends[shard - 1]) if shard else 0)


class _RankEpochs:
    """One rank's order of samples, epoch after epoch."""

    def __init__(self, order: LlmcOrder, rank: int):
        self._order, self._rank = order, rank
        self._epoch = -1
        self._starts = np.empty(0, np.int64)

    def starts(self, epoch: int) -> np.ndarray:
        """Index of the first sequence of each sample of `epoch`, in this rank's order."""
        if epoch < self._epoch or self._epoch < 0:
            self._rng = np.random.RandomState(LlmcOrder.SEED + self._rank)
            self._shards = np.arange(len(self._order.samples))
            self._epoch = -1
        while self._epoch < epoch:
            self._starts = self._next_epoch()
            self._epoch += 1
        return self._starts

    def shards(self, epoch: int) -> np.ndarray:
        """The shards of `epoch` in this rank's order."""
        self.starts(epoch)
        return self._shards

    def _next_epoch(self) -> np.ndarray:
        order = self._order
        if order.shuffle:  # the last epoch's order is shuffled again
            _shuffle(self._shards, self._rng)
        parts = []
        for shard in self._shards:
            samples = np.arange(order.samples[shard])
            if order.shuffle:
                _shuffle(samples, self._rng)
            parts.append(order.first[shard] + samples * order.ranks * order.B)
        return np.concatenate(parts)


def _shuffle(values: np.ndarray, rng: np.random.RandomState) -> None:
    """Fisher & Yates from the end, as llm.c's random_permutation in rand.h draws it."""
    draws = np.frombuffer(rng.bytes(4 * max(0, len(values) - 1)), "<u4")
    for i, draw in zip(range(len(values) - 1, 0, -1), draws.tolist(), strict=True):
        j = draw % (i + 1)
        values[i], values[j] = values[j], values[i]
