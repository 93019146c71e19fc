"""Lengths that are compiled for."""

from llmc_jax.models.lengths import padded_length


def test_lengths_are_few_and_padding_is_little():
    lengths = {padded_length(n, 1024) for n in range(1, 1025)}
    assert sorted(lengths) == [32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
    assert all(n <= padded_length(n, 1000) <= max(32, 1.5 * n) for n in range(1, 1001))
