"""The memory that a step is told to take before it is compiled, against XLA's own plan of it.

    python -m benchmarks.memory_plan [--models d6 d12] [--ops ffi jnp] [--T 64 512]

Compiles each step on the CPU (without optimising machine code, which changes no memory) and prints
a row: MiB by `llmc_jax.plan`, by XLA's memory_analysis(), and how far the first is off.
"""

import argparse
import itertools

import jax

from llmc_jax import machine, ops
from llmc_jax.config import model_config
from llmc_jax.training import memory
from tests.training.test_memory import by_xla, config

BATCH = 4  # sequences in a micro-batch
COLUMNS = ("model", "ops", "T", "micro-batches", "dtype", "recompute", "told, MiB", "XLA's, MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", nargs="+", default=["d6", "d12"])
    parser.add_argument("--ops", nargs="+", default=["ffi", "jnp"])
    parser.add_argument("--T", nargs="+", type=int, default=[64, 512])
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    print(f"{machine.describe()}\n\n| {' | '.join(COLUMNS)} | told is off by |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    cases = itertools.product(
        options.models, options.ops, options.T, (1, 2), ("float32", "bfloat16"), (0, 2)
    )
    worst: dict[str, float] = {}
    for model, spec, T, A, dtype, recompute in cases:
        cfg = config(BATCH, T, A=A, dtype=dtype, recompute=recompute)
        chosen, _ = ops.select(spec, "cpu")
        told = memory.step_memory(chosen, model_config(model), cfg, "cpu").total
        wanted = by_xla(chosen, model_config(model), cfg)
        off = told / wanted - 1
        worst[spec] = max(worst.get(spec, 0), abs(off))
        print(
            f"| {model} | {spec} | {T} | {A} | {dtype} | {recompute} | {told / 2**20:.1f} | "
            f"{wanted / 2**20:.1f} | {off:+.1%} |",
            flush=True,
        )
    print("\nat most: " + ", ".join(f"{spec} {off:.1%}" for spec, off in worst.items()))


if __name__ == "__main__":
    main()
