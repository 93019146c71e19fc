"""What this machine does at best: copy memory, multiply matrices. The roof of a roofline."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from llmc_jax.ops import Ops
from llmc_jax.ops.matmul import dot

ROUNDS = 9


def copy_rate(bytes: int) -> float:
    """Bytes/s, read and written, of a pass over an array of `bytes` in its own place: what is
    fresh from the operating system would have to be cleared by it first."""
    array = [jnp.arange(bytes // 4, dtype=jnp.float32)]
    negate = jax.jit(lambda x: -x, donate_argnums=0)

    def run():
        array[0] = negate(array[0])
        return array[0]

    return 2 * bytes / seconds(run)


def matmul_rate(ops: Ops, dtype: str, n: int) -> float:
    """FLOP/s of the product of two (n, n) matrices: the faster of XLA's and of the matmul op."""
    keys = jax.random.split(jax.random.key(0), 2)
    a, b = (jax.random.normal(key, (n, n)).astype(dtype) for key in keys)
    by_xla = jax.jit(lambda a, b: dot(a, b, (1, 1)).astype(a.dtype))
    by_op = jax.jit(lambda a, b: ops.matmul.forward(a[None], b, jnp.zeros(n))[0])
    return 2 * n**3 / min(seconds(by_xla, a, b), seconds(by_op, a, b))


def seconds(call: Callable, *arguments) -> float:
    """Of the fastest call after one that compiles: what it can, whoever else it serves."""
    jax.block_until_ready(call(*arguments))
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        jax.block_until_ready(call(*arguments))
        times.append(time.perf_counter() - began)
    return min(times)
