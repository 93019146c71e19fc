"""Which token comes next: drawn from the likeliest, each text with a key of its own."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

TINY = 1e-30  # the least temperature: float32 has smaller ones as 0, and 0 / 0 is no number


class Choice(NamedTuple):
    """Which tokens are drawn from, in this order, as in Hugging Face's generate."""

    temperature: float = 1.0  # below 1: surer, above: wilder; 0: always the likeliest token
    top_k: int = 40  # the k likeliest, as llm.c's train_gpt2.py; 0: all
    top_p: float = 1.0  # of these the fewest that have the probability top_p together; 1: all


def draw(logits, seeds, number, temperature, *, top_k: int, top_p: float):
    """Token `number` of each text; logits (B,V) float32, seeds (B,) uint32, result (B,) int32.

    A text's token follows from its logits, its seed and `number` only. temperature is above 0;
    the rest as in Choice (top_p: Holtzman et al. 2019, arXiv:1904.09751).
    """
    scores, tokens = lax.top_k(logits, top_k) if top_k else (logits, None)
    # of differences to the best: a temperature near 0 makes them -inf, and scores inf - inf
    scores = scores - jnp.max(scores, axis=-1, keepdims=True)
    probabilities = jax.nn.softmax(scores / jnp.maximum(temperature, TINY), axis=-1)
    if top_p < 1:
        probabilities = jnp.where(nucleus(probabilities, top_p), probabilities, 0)
    coins = jax.vmap(lambda seed: _coin(seed, number))(seeds)
    # the first place where the sum is above the coin; jax.random.categorical makes a random number
    # for each of 50,257 tokens, and takes ten times as long. XLA adds in pieces, so that a sum may
    # be below the one before: those of tokens that are left out do not count
    sums = jnp.where(probabilities > 0, jnp.cumsum(probabilities, axis=1), 0)
    above = sums > coins[:, None] * jnp.max(sums, axis=1, keepdims=True)
    numbers = lax.broadcasted_iota(jnp.int32, sums.shape, 1)
    places = jnp.min(jnp.where(above, numbers, sums.shape[1] - 1), axis=1)
    if top_k:
        places = jnp.take_along_axis(tokens, places[:, None], axis=1)[:, 0]
    return places.astype(jnp.int32)


def _coin(seed, number):
    """A random number from 0 to below 1."""
    return jax.random.uniform(jax.random.fold_in(jax.random.key(seed), number))


def nucleus(probabilities, top_p: float):
    """Which of (B,K) probabilities are the largest that have `top_p` together: the fewest, at
    least one, and those that are equal to the last of them.

    Halves the range of the smallest one's bits, which are in the order of the numbers: a sort of
    50,257 numbers takes ten times as long on a CPU.
    """
    bits = lax.bitcast_convert_type(probabilities, jnp.int32)

    def halve(_, bounds):
        low, high = bounds  # from low on is enough, from high on is not
        middle = low + (high - low) // 2
        taken = jnp.where(bits >= middle[:, None], probabilities, 0)
        enough = jnp.sum(taken, axis=1) >= top_p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    high = jnp.max(bits, axis=1) + 1
    low, _ = lax.fori_loop(0, 31, halve, (jnp.zeros_like(high), high))
    return bits >= low[:, None]
