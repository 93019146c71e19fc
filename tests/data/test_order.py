"""Orders of the training data: llm.c's, batch by batch, and ours, the same for all batch sizes."""

import itertools
import tempfile
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc_jax.config import BadInput
from llmc_jax.data.loader import TokenLoader
from llmc_jax.data.order import CounterOrder, MixedOrder
from llmc_jax.data.permutation import permute
from llmc_jax.data.tokens import write_shard

B, T = 2, 3


def test_the_order_is_the_one_that_checkpoints_are_of():
    """They hold a position in it alone: with another order a resumed run would see some sequences
    twice and others never. Change these numbers only with a new name for the order."""
    assert permute(np.arange(10), 1000, seed=42, epoch=0).tolist() == [
        775, 74, 153, 438, 513, 643, 850, 167, 740, 819
    ]  # fmt: skip
    assert permute(np.arange(4), 1000, seed=42, epoch=1).tolist() == [719, 532, 929, 868]
    assert permute(np.arange(4), 1000, seed=43, epoch=0).tolist() != [775, 74, 153, 438]


class MersenneTwister:
    """Matsumoto & Nishimura 1998, written out: the generator of llm.c's rand.h."""

    def __init__(self, seed: int):
        self.state = [seed]
        for i in range(1, 624):
            last = self.state[-1]
            self.state.append((1812433253 * (last ^ (last >> 30)) + i) % 2**32)
        self.at = 624

    def __call__(self) -> int:
        if self.at == 624:
            for i in range(624):
                y = (self.state[i] & 0x80000000) | (self.state[(i + 1) % 624] & 0x7FFFFFFF)
                twisted = (y >> 1) ^ (0x9908B0DF if y & 1 else 0)
                self.state[i] = self.state[(i + 397) % 624] ^ twisted
            self.at = 0
        y = self.state[self.at]
        self.at += 1
        y ^= y >> 11
        y ^= (y << 7) & 0x9D2C5680
        y ^= (y << 15) & 0xEFC60000
        return y ^ (y >> 18)


class LlmcLoader:
    """One rank of llm.c's loader, its rules one by one (llmc/dataloader.h)."""

    def __init__(self, shards, rank, ranks, shuffle):
        self.shards, self.rank, self.ranks, self.shuffle = shards, rank, ranks, shuffle
        self.random = MersenneTwister(42 + rank)
        self.order = list(range(len(shards)))
        self.reset()

    def permute(self, values):
        for i in range(len(values) - 1, 0, -1):
            j = self.random() % (i + 1)
            values[i], values[j] = values[j], values[i]

    def reset(self):
        if self.shuffle:
            self.permute(self.order)
        self.open(0)

    def open(self, place):
        self.place, self.sample = place, -1
        self.tokens = self.shards[self.order[place]]
        self.samples = list(range((2 * len(self.tokens) - 2) // (2 * self.ranks * B * T)))
        if self.shuffle:
            self.permute(self.samples)

    def next(self):
        self.sample += 1
        if self.sample >= len(self.samples):
            if self.place == len(self.shards) - 1:
                self.reset()
            else:
                self.open(self.place + 1)
            self.sample = 0
        start = (self.samples[self.sample] * self.ranks + self.rank) * B * T
        return self.tokens[start : start + B * T].reshape(B, T)


@pytest.fixture
def shards(tmp_path):
    """Four shards of uneven sizes; every token is unique."""
    ends = np.cumsum([0, 61, 40, 33, 100])
    shards = [np.arange(a, b) for a, b in itertools.pairwise(ends)]
    for i, shard in enumerate(shards):
        write_shard(tmp_path / f"{i}.bin", shard)
    return shards, f"{tmp_path}/*.bin"


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("shuffle", [True, False])
def test_llmcs_batches(shards, ranks, shuffle):
    """Three epochs of each rank's batches, also when reading begins in the middle."""
    tokens, pattern = shards
    loaders = [LlmcLoader(tokens, rank, ranks, shuffle) for rank in range(ranks)]
    wanted = np.concatenate([l.next() for _ in range(60) for l in loaders])
    loader = TokenLoader("train_data", pattern, T=T, V=1000, shuffle=shuffle, llmc=(B, ranks))
    assert np.array_equal(loader.read(0, 60 * B * ranks)[0], wanted)
    for step in (41, 3):
        start, end = step * B * ranks, (step + 1) * B * ranks
        assert np.array_equal(loader.read(start, B * ranks)[0], wanted[start:end])
    if shuffle and ranks == 1:
        assert not np.array_equal(wanted[:20], np.sort(wanted[:20], axis=0))


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("shuffle", [True, False])
def test_llmcs_place_is_rank_0s(shards, ranks, shuffle):
    """Over three epochs; at the end of a shard it is still there."""
    tokens, pattern = shards
    llmc, wanted = LlmcLoader(tokens, 0, ranks, shuffle), []
    for _ in range(60):
        wanted.append((llmc.place, llmc.sample + 1))
        llmc.next()
    options = dict(T=T, V=1000, shuffle=shuffle, llmc=(B, ranks))
    order = TokenLoader("train_data", pattern, **options).order
    assert [order.place(step * B * ranks) for step in range(60)] == wanted


def test_a_shard_too_small_for_llmcs_order_is_refused(shards):
    with pytest.raises(BadInput, match="--shuffle_order=llmc needs 16 sequences in each shard"):
        TokenLoader("train_data", shards[1], T=T, V=1000, llmc=(B, 8))


@st.composite
def corpora(draw):
    """Sizes of shards, T, and a seed or None for the order of the files; one sequence at least."""
    T = draw(st.integers(1, 9))
    sizes = draw(st.lists(st.integers(0, 60), min_size=1, max_size=5))
    return [*sizes, draw(st.integers(T + 1, 60))], T, draw(st.none() | st.integers(0, 99))


@settings(max_examples=60, deadline=None)
@given(corpora(), st.integers(1, 8), st.integers(1, 3), st.integers(1, 3))
def test_the_ranks_of_an_epoch_see_every_token_once(corpus, ranks, B, A):
    """Each rank reads its part of each batch; together they see what one device would see."""
    sizes, T, seed = corpus
    shards = np.split(np.arange(sum(sizes), dtype=np.uint16), np.cumsum(sizes)[:-1])
    with tempfile.TemporaryDirectory() as folder:
        for number, shard in enumerate(shards):
            write_shard(f"{folder}/{number}.bin", shard)
        options = dict(T=T, V=1000, shuffle=seed is not None, seed=seed or 0)
        loader = TokenLoader("train_data", f"{folder}/*.bin", **options)
        batch = A * ranks * B
        rows = np.arange(batch).reshape(A, ranks, B)
        seen = np.empty((-(-loader.num_sequences // batch) * batch, T), int)
        for start in range(0, len(seen), batch):
            for rank in range(ranks):
                own = rows[:, rank].ravel()
                inputs, targets = loader.read(start, batch, rows=own)
                assert np.array_equal(inputs + 1, targets)
                seen[start + own] = inputs
        assert np.array_equal(seen, loader.read(0, len(seen))[0])
        epoch = seen[: loader.num_sequences]
        wanted = [s[: (len(s) - 1) // T * T] for s in shards if len(s) > T]
        assert sorted(epoch.ravel()) == sorted(np.concatenate(wanted))


@settings(max_examples=10, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.fractions("0.001", 1, max_denominator=1000)),
        min_size=2, max_size=5,
    ),
    st.integers(0, 10**4),
    st.integers(1, 300),
)  # fmt: skip
def test_a_mix_keeps_its_shares_everywhere(sets, position, count):
    """Of the first p rows each set has given its share, in its own order, from any p on."""
    sizes, weights = zip(*sets, strict=True)
    orders = [CounterOrder(size, shuffle=True, seed=7) for size in sizes]
    mix = MixedOrder(orders, weights)
    before, whole = mix.index(0, position), mix.index(0, position + count)
    index = mix.index(position, count)
    assert np.array_equal(whole, np.concatenate([before, index]))
    for number, weight in enumerate(weights):
        first = sum(sizes[:number])
        own, so_far = (x[(x >= first) & (x < first + sizes[number])] for x in (whole, before))
        assert np.array_equal(own - first, orders[number].index(0, len(own)))
        for some, rows in ((own, position + count), (so_far, position)):
            # a row for each set that chooses first; a share may be a millionth off
            assert abs(len(some) - weight / sum(weights) * rows) <= number + 2


def test_a_mix_far_on_is_found_at_once():
    """No number overflows, and shares hold, past the rows of any run."""
    orders = [CounterOrder(size, shuffle=True, seed=7) for size in (10**9, 10**8)]
    mix = MixedOrder(orders, [Fraction("0.7123456789"), Fraction("0.2876543211")])
    index = mix.index(10**12, 10_000)
    assert index.min() >= 0 and index.max() < 11 * 10**8
    assert abs((index < 10**9).sum() - 7123) <= 2


def test_an_epoch_of_a_mix_repeats_nothing():
    mix = MixedOrder(
        [CounterOrder(size, shuffle=True, seed=1) for size in (70, 20, 500)],
        [Fraction("0.6"), Fraction("0.3"), Fraction("0.1")],
    )
    assert mix.num_sequences == 66  # a third of them are the second set's 20
    index = mix.index(0, mix.num_sequences)
    assert len(set(index)) == len(index)
    assert np.bincount(np.searchsorted([70, 90], index, side="right")).tolist() == [39, 20, 7]
