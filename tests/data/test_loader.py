"""The loader's order: every sequence once an epoch, the same whatever the batches are."""

import itertools
import json

import numpy as np
import pytest

from llmc_jax.config import BadInput
from llmc_jax.data.loader import TokenLoader
from llmc_jax.data.permutation import permute
from llmc_jax.data.tokens import write_shard

T = 8


@pytest.fixture
def pattern(tmp_path):
    """Three shards of uneven sizes, one too small for a sequence; every token is unique."""
    starts = np.cumsum([0, 3 * T + 5, 4, 2 * T + 1])
    for i, (start, end) in enumerate(itertools.pairwise(starts)):
        write_shard(tmp_path / f"{i}.bin", np.arange(start, end))
    return f"{tmp_path}/*.bin"


def load(pattern, **options) -> TokenLoader:
    return TokenLoader("train_data", pattern, T=T, V=1000, **options)


def test_sequences_in_the_order_of_the_files(pattern):
    inputs, targets = load(pattern).read(0, 5)
    assert inputs.shape == targets.shape == (5, T) and inputs.dtype == np.int32
    assert inputs[:, 0].tolist() == [0, 8, 16, 33, 41]
    assert np.array_equal(targets, inputs + 1)


@pytest.mark.parametrize("shuffle", [False, True])
def test_an_epoch_holds_every_sequence_once(pattern, shuffle):
    loader = load(pattern, shuffle=shuffle, seed=3)
    first, second = (loader.read(epoch * 5, 5)[0][:, 0] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == [0, 8, 16, 33, 41]
    if shuffle:
        assert first.tolist() != second.tolist()  # each epoch has an order of its own


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_do_not_depend_on_their_size(pattern, shuffle):
    """Also across the end of an epoch, and from any position."""
    loader = load(pattern, shuffle=shuffle)
    whole = loader.read(0, 12)[0]
    starts = itertools.pairwise([0, 1, 5, 7, 12])
    parts = [load(pattern, shuffle=shuffle).read(at, end - at)[0] for at, end in starts]
    assert np.array_equal(whole, np.concatenate(parts))
    assert np.array_equal(whole[[8, 3]], loader.read(2, 10, rows=np.array([6, 1]))[0])


def test_a_mix_reads_from_each_of_its_sets(tmp_path):
    write_shard(tmp_path / "a.bin", np.arange(0, 10 * T + 1))
    write_shard(tmp_path / "b.bin", np.arange(500, 500 + 4 * T + 1))
    loader = load(f"{tmp_path}/a.bin:3,{tmp_path}/b.bin:1.0")
    assert loader.read(0, 8)[0][:, 0].tolist() == [500, 0, 8, 16, 508, 24, 32, 40]
    assert loader.num_sequences == 13  # then the first set begins anew


def test_data_are_told_by_what_they_are_and_not_by_their_name(tmp_path, monkeypatch):
    for name, start in (("a", 0), ("b", 100)):
        write_shard(tmp_path / f"{name}.bin", np.arange(start, start + 5 * T + 1))
    monkeypatch.chdir(tmp_path)
    mix = load("a.bin:3,b.bin:1").description
    assert json.loads(json.dumps(mix)) == mix
    assert mix == load(f"{tmp_path}/a.*:0.75,b*.bin:0.25").description
    others = ["a.bin:3,b.bin:2", "b.bin:3,a.bin:1", "a.bin,b.bin", "a.bin"]
    assert mix not in [load(pattern).description for pattern in others]
    assert load("a.bin,b.bin").description == load("?.bin").description


def test_of_small_data_every_token_is_looked_at(tmp_path):
    tokens = np.arange(20_000) % 1000
    write_shard(tmp_path / "a.bin", tokens)
    before = load(f"{tmp_path}/a.bin").description
    tokens[10_123] += 1
    write_shard(tmp_path / "a.bin", tokens)
    after = load(f"{tmp_path}/a.bin").description
    assert after["sampled"] != before["sampled"]
    assert after == before | dict(sampled=after["sampled"])


def test_of_large_data_every_stretch_is_looked_at(tmp_path, monkeypatch):
    """What is changed over two of the stretches that the shards are cut into is always found."""
    for name, number in (("PLACES", 16), ("PLACE_TOKENS", 4), ("END_TOKENS", 1)):
        monkeypatch.setattr(f"llmc_jax.data.loader.{name}", number)
    sizes = (3000, 1000, 3)
    for number, size in enumerate(sizes):
        write_shard(tmp_path / f"{number}.bin", np.zeros(size))
    before = load(f"{tmp_path}/*.bin").description
    two = 2 * sum(sizes) // 16
    for begin in range(0, sizes[0] - two, 100):
        tokens = np.zeros(sizes[0])
        tokens[begin : begin + two] = 1
        write_shard(tmp_path / "0.bin", tokens)
        assert load(f"{tmp_path}/*.bin").description != before


def test_globs_without_weights_are_one_set(tmp_path):
    write_shard(tmp_path / "b.bin", np.arange(0, 2 * T + 1))
    write_shard(tmp_path / "a.bin", np.arange(100, 100 + T + 1))
    loader = load(f"{tmp_path}/b.*,{tmp_path}/a.bin")
    assert loader.read(0, 3)[0][:, 0].tolist() == [0, T, 100]
    assert loader.num_sequences == 3


@pytest.mark.parametrize(
    "weights, options, message",
    [
        ((":0.5", ""), {}, "has weights for some globs only"),
        ((":0.5", ":0"), {}, "a weight is at least a millionth of their sum"),
        ((":0", ":0"), {}, "a weight is at least a millionth of their sum"),
        ((":1", ":0.0000001"), {}, "a weight is at least a millionth of their sum"),
        ((":1", ":1"), dict(llmc=(1, 1)), "is a mix, which --shuffle_order=llmc does not know"),
    ],
)
def test_what_is_no_mix_is_refused(tmp_path, weights, options, message):
    parts = []
    for name, weight in zip("ab", weights, strict=True):
        write_shard(tmp_path / f"{name}.bin", np.arange(100))
        parts.append(f"{tmp_path}/{name}.bin{weight}")
    with pytest.raises(BadInput, match=message):
        load(",".join(parts), **options)


def test_a_set_of_a_mix_that_is_too_small_is_named(pattern, tmp_path):
    write_shard(tmp_path / "small", np.zeros(T))
    with pytest.raises(BadInput, match=r"small holds no sequence of 8 tokens and one more"):
        load(f"{pattern}:1,{tmp_path}/small:1")


def test_a_token_outside_the_vocabulary_is_named(tmp_path):
    write_shard(tmp_path / "a.bin", np.full(100, 50257))
    loader = TokenLoader("train_data", f"{tmp_path}/a.bin", T=T, V=50257)
    with pytest.raises(BadInput, match=r"a\.bin has token 50257"):
        loader.read(0, 1)


def test_too_little_text_is_refused(tmp_path):
    write_shard(tmp_path / "a.bin", np.zeros(T))
    with pytest.raises(BadInput, match="holds no sequence of 8 tokens and one more"):
        load(f"{tmp_path}/a.bin")


@pytest.mark.parametrize("n", [1, 2, 3, 17, 64, 1000])
def test_permute_is_a_permutation(n):
    orders = [permute(np.arange(n), n, 42, epoch) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(n)) for order in orders)
    if n > 10:
        assert not np.array_equal(*orders)
        assert not np.array_equal(orders[0], permute(np.arange(n), n, 43, 0))
    # an element is the same whether it is computed alone or not
    assert permute(np.array([n - 1]), n, 42, 0) == orders[0][n - 1]


def test_permute_spreads_neighbours():
    """A shuffled order must not keep neighbours together: mean distance n/3, as for random ones."""
    n = 10_000
    distance = np.abs(np.diff(permute(np.arange(n), n, 42, 0))).mean()
    assert 0.31 * n < distance < 0.36 * n
