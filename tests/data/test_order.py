"""Orders of the training data: llm.c's, batch by batch, and ours, the same for all batch sizes."""

import itertools

import numpy as np
import pytest

from llmc_jax.config import BadInput
from llmc_jax.data.loader import TokenLoader
from llmc_jax.data.tokens import write_shard

B, T = 2, 3


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
    assert np.array_equal(loader.next(60 * B * ranks)[0], wanted)
    for step in (41, 3):
        loader.position = step * B * ranks
        start = loader.position
        assert np.array_equal(loader.next(B * ranks)[0], wanted[start : loader.position])
    if shuffle and ranks == 1:
        assert not np.array_equal(wanted[:20], np.sort(wanted[:20], axis=0))


def test_a_shard_too_small_for_llmcs_order_is_refused(shards):
    with pytest.raises(BadInput, match="--shuffle_order=llmc needs 16 sequences in each shard"):
        TokenLoader("train_data", shards[1], T=T, V=1000, llmc=(B, 8))


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_the_counters_order_is_the_same_on_any_number_of_devices(shards, devices):
    """Each step has the same sequences, and an epoch each of them once."""
    _, pattern = shards
    loader = TokenLoader("train_data", pattern, T=T, V=1000, shuffle=True, seed=1)
    total = 8  # sequences a step, in micro-batches of `devices`
    steps = [
        np.concatenate([loader.next(devices)[0] for _ in range(total // devices)])
        for _ in range(loader.num_sequences // total)
    ]
    whole = TokenLoader("train_data", pattern, T=T, V=1000, shuffle=True, seed=1)
    assert all(np.array_equal(step, whole.next(total)[0]) for step in steps)
    epoch = np.concatenate([*steps, loader.next(loader.num_sequences - total * len(steps))[0]])
    sequences = [s[: (len(s) - 1) // T * T].reshape(-1, T) for s in shards[0]]
    assert sorted(map(tuple, epoch)) == sorted(map(tuple, np.concatenate(sequences)))
