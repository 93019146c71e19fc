"""The memory that a step is told to take before it is compiled, against XLA's own plan of it.

    python -m benchmarks.memory_plan [--models d6 d12] [--ops ffi jnp] [--T 64 512] [--devices 8]

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

COLUMNS = (
    "model", "ops", "T", "micro-batches", "dtype", "recompute", "ZeRO", "told, MiB", "XLA's, MiB",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", nargs="+", default=["d6", "d12"])
    parser.add_argument("--ops", nargs="+", default=["ffi", "jnp"])
    parser.add_argument("--T", nargs="+", type=int, default=[64, 512])
    parser.add_argument("--batch", type=int, default=4, help="sequences in a micro-batch")
    parser.add_argument("--devices", type=int, default=1, help="of several, ZeRO's stages too")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", options.devices)
    stages, recomputes = (range(4), (1,)) if options.devices > 1 else ((0,), (0, 2))
    print(f"{machine.describe()}\n\n| {' | '.join(COLUMNS)} | told is off by |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    cases = itertools.product(
        options.models, options.ops, options.T, (1, 2), ("float32", "bfloat16"), recomputes, stages
    )
    worst: dict[str, float] = {}
    for model, spec, T, A, dtype, recompute, stage in cases:
        how = dict(dtype=dtype, recompute=recompute, zero_stage=stage)
        cfg = config(options.batch, T, A=A * options.devices, **how)
        chosen, _ = ops.select(spec, "cpu")
        told = memory.step_memory(chosen, model_config(model), cfg, "cpu", options.devices).total
        wanted = by_xla(chosen, model_config(model), cfg)
        off = told / wanted - 1
        worst[spec] = max(worst.get(spec, 0), abs(off))
        print(
            f"| {model} | {spec} | {T} | {A} | {dtype} | {recompute} | {stage} | "
            f"{told / 2**20:.1f} | {wanted / 2**20:.1f} | {off:+.1%} |",
            flush=True,
        )
    print("\nat most: " + ", ".join(f"{spec} {off:.1%}" for spec, off in worst.items()))


if __name__ == "__main__":
    main()
