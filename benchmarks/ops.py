"""Every op in every implementation, forward and backward, at the sizes of d12.

    python benchmarks/ops.py

Implementations run in turn; medians. An implementation becomes a default (ops.DEFAULTS) by a row
here.
"""

import statistics
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import app, flags

sys.path.insert(0, str(Path(__file__).parent))
from machine import describe

from llmc_jax import ffi, ops
from llmc_jax.ops import cases

ROUNDS = flags.DEFINE_integer("rounds", 9, "timed calls of each implementation")


def d12(B, T):
    """op -> the case it meets in d12."""
    return {
        "encoder": cases.encoder(B, T, 768, 50304, 1024),
        "layernorm": cases.layernorm(B, T, 768),
        "matmul": cases.matmul(B, T, 768, 3072),
        "gelu": cases.gelu(B, T, 3072),
        "attention": cases.attention(B, T, 12, 64),
        "classifier": cases.classifier(B, T, 768, 50257, 50304),
    }


def in_turn(functions, arguments):
    """Median milliseconds of each function on its arguments."""
    times = [[] for _ in functions]
    for round in range(ROUNDS.value + 1):
        for function, args, samples in zip(functions, arguments, times, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(function(*args))
            if round:  # the first compiles
                samples.append(1000 * (time.perf_counter() - began))
    return [statistics.median(samples) for samples in times]


def measure(op, case, dtype):
    """implementation -> (forward, backward) in milliseconds."""
    inputs = cases.make_inputs(case, jnp.dtype(dtype))
    forwards, backwards, backward_args = [], [], []
    for implementation in ops.TABLE[op].values():
        forwards.append(jax.jit(partial(implementation.forward, **case.static)))
        backwards.append(jax.jit(partial(implementation.backward, **case.static)))
        out, saved = forwards[-1](*inputs)
        dout = out if case.dout is None else inputs[case.dout]
        backward_args.append((saved, dout, *inputs))
    forward = in_turn(forwards, [inputs] * len(forwards))
    backward = in_turn(backwards, backward_args)
    return dict(zip(ops.TABLE[op], zip(forward, backward, strict=True), strict=True))


def main(_):
    ffi.require(jax.default_backend())
    print(f"{describe()}\n\nMilliseconds, forward + backward; median of {ROUNDS.value}.\n")
    print("| op | dtype | B, T | jnp | ffi | gain |\n|---|---|---|---|---|---|")
    for B, T in ((4, 64), (4, 1024)):
        for op, case in d12(B, T).items():
            for dtype in ("float32", "bfloat16"):
                result = measure(op, case, dtype)
                shown = {name: f"{f:.2f} + {b:.2f}" for name, (f, b) in result.items()}
                gain = f"{sum(result['jnp']) / sum(result['ffi']):.2f}x" if "ffi" in result else ""
                row = [op, dtype, f"{B}, {T}", shown["jnp"], shown.get("ffi", ""), gain]
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    app.run(main)
