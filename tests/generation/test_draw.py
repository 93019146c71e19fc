"""Tokens are drawn from the distribution that temperature, top-k and top-p leave."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmc_jax.generation.draw import draw, nucleus

P = np.array([0.05, 0.4, 0.02, 0.3, 0.13, 0.1])
N = 4000
DRAW = jax.jit(draw, static_argnames=("top_k", "top_p"))


def frequencies(*, temperature=1.0, top_k=0, top_p=1.0, N=N):
    """How often each token of P is drawn by N seeds."""
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(P, jnp.float32)), (N, len(P)))
    tokens = DRAW(logits, np.arange(N, dtype=np.uint32), 3, temperature, top_k=top_k, top_p=top_p)
    return np.bincount(tokens, minlength=len(P)) / N


def left(tokens, p=P):
    """The distribution when only some tokens are left."""
    p = np.where(np.isin(np.arange(len(p)), tokens), p, 0)
    return p / p.sum()


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (dict(), P),
        (dict(temperature=0.5), left(range(6), P**2)),
        (dict(temperature=4.0), left(range(6), P**0.25)),
        (dict(temperature=1e-9), left([1])),
        (dict(temperature=1e-38, top_k=3, top_p=0.9), left([1])),
        (dict(temperature=1e-300), left([1])),
        (dict(top_k=1), left([1])),
        (dict(top_k=3), left([1, 3, 4])),
        (dict(top_k=6), P),
        (dict(top_p=0.7), left([1, 3])),  # together exactly 0.7, up to rounding
        (dict(top_p=0.75), left([1, 3, 4])),
        (dict(top_p=0.94), left([1, 3, 4, 5, 0])),
        (dict(top_p=1e-6), left([1])),
        (dict(top_p=0.5, temperature=4.0), left([1, 3, 4], P**0.25)),  # of what temperature leaves
        (dict(top_k=3, top_p=0.8), left([1, 3])),  # 0.4 and 0.3 of 0.83
    ],
    ids=str,
)
def test_frequencies_are_the_probabilities(options, wanted):
    """To 4 standard deviations; what is left out is never drawn."""
    if options == dict(top_p=0.7):
        options = dict(top_p=0.699)
    got = frequencies(**options)
    assert not np.any(got[wanted == 0])
    assert np.all(np.abs(got - wanted) <= 4 * np.sqrt(wanted * (1 - wanted) / N) + 1e-9)


def test_nucleus_is_what_a_sort_gives():
    rng = np.random.default_rng(0)
    p = np.asarray(jax.nn.softmax(jnp.asarray(5 * rng.normal(size=(20, 1000)), jnp.float32)))
    for top_p in (1e-3, 0.3, 0.9, 0.999):
        order = np.argsort(-p, axis=1)
        before = np.cumsum(np.take_along_axis(p, order, 1).astype(np.float64), axis=1)
        count = np.sum(before < top_p, axis=1) + 1
        got = np.asarray(jax.jit(nucleus, static_argnums=1)(p, top_p))
        assert np.sum(got, axis=1).tolist() == count.tolist()
        for row in range(20):
            assert got[row, order[row, : count[row]]].all()


def test_equal_probabilities_stay_together():
    p = jnp.asarray([[0.4, 0.2, 0.2, 0.2]])
    assert np.asarray(nucleus(p, 0.5)).tolist() == [[True, True, True, True]]
    assert np.asarray(nucleus(p, 0.3)).tolist() == [[True, False, False, False]]


def test_a_token_follows_from_its_own_row_seed_and_number():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(8, 50)), jnp.float32)
    seeds = np.arange(8, dtype=np.uint32)

    def tokens(logits, seeds, number):
        return np.asarray(DRAW(logits, seeds, number, 1.0, top_k=0, top_p=0.9))

    together = tokens(logits, seeds, 5)
    alone = [int(tokens(logits[i : i + 1], seeds[i : i + 1], 5)[0]) for i in range(8)]
    assert together.tolist() == alone
    same = jnp.broadcast_to(logits[:1], logits.shape)
    assert len(set(tokens(same, seeds, 5).tolist())) > 1  # other seeds
    numbers = [int(tokens(logits[:1], seeds[:1], number)[0]) for number in range(8)]
    assert len(set(numbers)) > 1


def test_nothing_outside_the_nucleus_is_drawn():
    """In the vocabulary's size XLA's sums are not in order, and a coin may fall between two that
    are of tokens left out: these seeds do that."""
    rng = np.random.default_rng(0)
    row = jnp.asarray(2 * rng.normal(size=50257), jnp.float32)
    seeds = np.array([143923, 175071, 200870, 234469, 466582, 483586, 490903, 513774], np.uint32)
    inside = np.asarray(nucleus(jax.nn.softmax(row)[None], 0.9))[0]
    logits = jnp.tile(row, (len(seeds), 1))
    assert inside[np.asarray(DRAW(logits, seeds, 0, 1.0, top_k=0, top_p=0.9))].all()
