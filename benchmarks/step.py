"""Our training step against the same model under jax.value_and_grad and optax.

    python benchmarks/step.py --B=4 --T=64 --dtype=float32

Runs the programs in turn, each once a round, and prints the median of each as Markdown, with the
memory that XLA plans for each.
"""

import statistics
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).parent))
import autodiff
from machine import describe

from llmc_jax import ops
from llmc_jax.config import TrainConfig, model_config
from llmc_jax.models.initialize import initialize
from llmc_jax.training import parallel
from llmc_jax.training.parallel import planned_bytes
from llmc_jax.training.step import init_state, train_step

MODEL = flags.DEFINE_string("model", "d12", "model descriptor")
B = flags.DEFINE_integer("B", 4, "sequences")
T = flags.DEFINE_integer("T", 64, "tokens in a sequence")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "type of activations")
OPS = flags.DEFINE_list("ops", ["jnp", "auto"], "our programs: values of --ops")
ROUNDS = flags.DEFINE_integer("rounds", 9, "timed steps of each program")


def ours(spec: str):
    """Our step with --ops=spec, compiled, and its first state."""
    model, mesh = model_config(MODEL.value), parallel.make_mesh()
    cfg = TrainConfig(
        max_steps=100, batch_size=B.value, sequence_length=T.value, weight_decay=0.1,
        recompute=0, dtype=DTYPE.value, total_batch_size=B.value * T.value,
    )  # fmt: skip
    chosen, _ = ops.select(spec, jax.default_backend())
    step = parallel.map_train_step(partial(train_step, ops=chosen, model=model, cfg=cfg), mesh)
    state = parallel.replicate(init_state(initialize(model, 42)), mesh)
    return step, state, lambda x: x[None]


def plain():
    """The baseline, compiled, and its first state."""
    model = model_config(MODEL.value)
    params = jax.tree.map(jnp.asarray, initialize(model, 42))
    step, state = autodiff.make_step(
        params, NH=model.NH, dtype=jnp.dtype(DTYPE.value), learning_rate=3e-4
    )
    return step, state, lambda x: x


def main(_):
    tokens = np.random.default_rng(0).integers(0, 50257, (B.value, T.value + 1), np.int32)
    programs = {"value_and_grad + optax": plain()}
    programs |= {f"llmc_jax --ops={spec}": ours(spec) for spec in OPS.value}
    compiled, states, batches, times, memory = {}, {}, {}, {}, {}
    for name, (step, state, shape) in programs.items():
        batches[name] = jax.device_put((shape(tokens[:, :-1]), shape(tokens[:, 1:])))
        compiled[name] = step.lower(state, *batches[name]).compile()
        memory[name] = planned_bytes(compiled[name]) / 2**20
        states[name], times[name] = state, []
    programs.clear()
    for round in range(ROUNDS.value + 1):
        for name, step in compiled.items():
            began = time.perf_counter()
            states[name], _ = jax.block_until_ready(step(states[name], *batches[name]))
            if round:  # the first is warm-up
                times[name].append(time.perf_counter() - began)
    print(describe())
    print(f"\n{MODEL.value}, B={B.value}, T={T.value}, {DTYPE.value}: median of {ROUNDS.value}\n")
    print("| program | ms a step | tokens/s | against the first | peak memory, MiB |")
    print("|---|---|---|---|---|")
    medians = {name: statistics.median(samples) for name, samples in times.items()}
    first = next(iter(medians.values()))
    for name, median in medians.items():
        print(
            f"| {name} | {1000 * median:.0f} | {B.value * T.value / median:.0f} | "
            f"{first / median:.2f}x | {memory[name]:.0f} |"
        )


if __name__ == "__main__":
    app.run(main)
