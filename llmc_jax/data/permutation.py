"""A random order of 0..n-1 of which any element is computed on its own.

The order needs no memory and no state but a position, so a resumed run continues anywhere at no
cost. A Feistel network (Luby & Rackoff 1988) permutes the numbers below a power of four; numbers
that fall outside 0..n-1 are permuted again until they fall inside (cycle walking, Black &
Rogaway 2002).
"""

import numpy as np

ROUNDS = 6


def permute(index: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """Image of `index` (int64, each in 0..n-1) under the order that (seed, epoch) selects."""
    half = np.uint64(max(1, (int(n - 1).bit_length() + 1) // 2))
    keys = np.random.SeedSequence((seed, epoch)).generate_state(ROUNDS, np.uint64)
    out = _feistel(index.astype(np.uint64), half, keys)
    while (outside := out >= n).any():
        out[outside] = _feistel(out[outside], half, keys)
    return out.astype(np.int64)


def _feistel(x: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    """A permutation of the numbers of 2 * half bits."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = x >> half, x & mask
    for key in keys:
        left, right = right, left ^ (_hash(right + key) & mask)
    return (left << half) | right


def _hash(x: np.ndarray) -> np.ndarray:
    """Steele et al. 2014, splitmix64's output function."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
