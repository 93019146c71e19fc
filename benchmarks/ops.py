"""Every op on every instruction set, at the sizes of d12, against its jnp twin and its floor.

    python benchmarks/ops.py                  # B=4, T=64, all instruction sets
    python benchmarks/ops.py --T=1024 --isas=auto
    python benchmarks/ops.py --T=1024 --floors   # where a step's time goes, against the floors

Implementations run in turn; medians. A kernel becomes a default (ops.DEFAULTS) by a row here.
"""

import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
from absl import app, flags

from llmc_jax import ffi, ops
from llmc_jax.config import model_config
from llmc_jax.machine import describe
from llmc_jax.ops import cases
from llmc_jax.ops.adamw import Hyper

B = flags.DEFINE_integer("B", 4, "sequences")
T = flags.DEFINE_integer("T", 64, "tokens in a sequence")
DTYPES = flags.DEFINE_list("dtypes", ["float32", "bfloat16"], "types of activations")
ISAS = flags.DEFINE_list("isas", ["all"], "instruction sets: all, auto, or names")
ROUNDS = flags.DEFINE_integer("rounds", 7, "timed calls of each implementation")
FLOORS = flags.DEFINE_bool("floors", False, "the table of floors instead (bfloat16, kernels)")

MODEL = model_config("d12")
PARAMETERS = MODEL.num_parameters

# Rates of this class of machine (two cores with AMX) that the floors are made of: what a good
# library reaches, not what the hardware could.
MATMUL_FLOPS = {"float32": 0.33e12, "bfloat16": 2.8e12}
ATTENTION_FLOPS = {"float32": 0.3e12, "bfloat16": 1.5e12}
BYTES = 47e9


def d12() -> dict:
    """name -> (op, case, calls of its forward in a step)."""
    uses = cases.uses(MODEL, B.value, T.value)
    return {name: (use.op, use.case, use.forward) for name, use in uses.items()}


def work(name: str, dtype: str) -> tuple[float, float]:
    """(flop, bytes) of forward and backward of one call: one of them is what bounds it."""
    op, case, _ = d12()[name]
    passes = ops.COST[op](*cases.shapes(case, jnp.dtype(dtype)), **case.static)
    flop, moved = map(sum, zip(*passes, strict=True))
    return (flop, 0) if flop else (0, moved)


def in_turn(calls) -> list[float]:
    """Median milliseconds of each call, made in turn; the first round compiles."""
    times = [[] for _ in calls]
    for round in range(ROUNDS.value + 1):
        for call, samples in zip(calls, times, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(call())
            if round:
                samples.append(1000 * (time.perf_counter() - began))
    return [statistics.median(samples) for samples in times]


def passes(op: str, case, dtype: str, implementation: str, isa: str):
    """(forward, backward): functions without arguments that run one pass."""
    chosen = ops.TABLE[op][implementation]
    # Weights as small as a model's: large ones give losses beyond 60, where the classifier makes
    # its products twice.
    inputs = [
        x / 64 if _is_weight(spec) else x
        for x, spec in zip(cases.make_inputs(case, jnp.dtype(dtype)), case.inputs, strict=True)
    ]
    if implementation == "ffi" and chosen.rounds_weights and dtype == "bfloat16":
        inputs = [x.astype(jnp.float32) if _is_weight(s) else x
                  for x, s in zip(inputs, case.inputs, strict=True)]  # fmt: skip
    static = case.static | (dict(dtype=dtype) if op == "encoder" else {})
    forward = jax.jit(partial(chosen.forward, **static))
    ffi.select_isa(isa)
    out, saved = forward(*inputs)
    dout = out if case.dout is None else inputs[case.dout]
    backward_inputs = list(case.backward_inputs(inputs, out))
    donated = ()
    if case.so_far is not None:  # added to in place, as in the step: so it must be donated
        donated = (2 + case.so_far,)
        backward_inputs[case.so_far] = jnp.copy(backward_inputs[case.so_far])
    backward = jax.jit(partial(chosen.backward, **case.static), donate_argnums=donated)

    def run_backward():
        ffi.select_isa(isa)
        result = backward(saved, dout, *backward_inputs)
        if donated:
            backward_inputs[case.so_far] = result[0]
        return result

    def run_forward():
        ffi.select_isa(isa)
        return forward(*inputs)

    if op == "classifier" and implementation == "ffi":
        # its forward makes the gradients, and to jit what only passes them on would time a copy
        return run_forward, lambda: None
    return run_forward, run_backward


def _is_weight(spec) -> bool:
    return spec.kind == "tensor" and len(spec.shape) == 2


def rate(flop: float, moved: float, milliseconds: float) -> str:
    if flop:
        return f"{flop / milliseconds / 1e6:,.0f} GFLOP/s"
    return f"{moved / milliseconds / 1e6:,.0f} GB/s"


def row(*cells) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def isa_table(isas: list[str]) -> None:
    row("op", "dtype", "by", "forward, ms", "backward, ms", "rate", "against jnp")
    print("|---|---|---|---|---|---|---|")
    for name, (op, case, _) in d12().items():
        for dtype in DTYPES.value:
            contestants = [("jnp", "auto"), *(("ffi", isa) for isa in isas)]
            calls = [f for how in contestants for f in passes(op, case, dtype, *how)]
            medians = in_turn(calls)
            jnp_total = sum(medians[:2])
            for i, (implementation, isa) in enumerate(contestants):
                forward, backward = medians[2 * i : 2 * i + 2]
                by = implementation if implementation == "jnp" else isa
                total = forward + backward
                row(name, dtype, by, f"{forward:.2f}", f"{backward:.2f}",
                    rate(*work(name, dtype), total), f"{jnp_total / total:.2f}x")  # fmt: skip
    optimizer_rows(isas)


def optimizer(isa: str, implementation: str):
    """(norm, update) over tensors of d12's size, as functions without arguments."""
    tree = [jnp.full(PARAMETERS // 16, 1e-3) for _ in range(16)]
    params, grads, m, v = (jax.tree.map(jnp.copy, tree) for _ in range(4))
    hyper = Hyper(jnp.float32(1e-4), jnp.float32(1), jnp.int32(3), 0.9, 0.95, 1e-8)
    update = jax.jit(
        lambda p, g, m, v: ops.TABLE["adamw"][implementation](
            p, g, m, v, hyper, weight_decay=[0.1] * 16
        ),
        donate_argnums=(0, 2, 3),
    )
    norm = jax.jit(ops.TABLE["global_norm"][implementation])
    state = [params, m, v]

    def run_update():
        ffi.select_isa(isa)
        state[:] = update(state[0], grads, *state[1:])
        return state

    def run_norm():
        ffi.select_isa(isa)
        return norm(grads)

    return run_norm, run_update


def optimizer_rows(isas: list[str]) -> None:
    contestants = [("jnp", "auto"), *(("ffi", isa) for isa in isas)]
    medians = in_turn([f for how, isa in contestants for f in optimizer(isa, how)])
    for i, (implementation, isa) in enumerate(contestants):
        by = implementation if implementation == "jnp" else isa
        for j, (name, moved) in enumerate((("global_norm", 4), ("adamw", 28))):
            ms = medians[2 * i + j]
            row(name, "float32", by, f"{ms:.2f}", "", rate(0, moved * PARAMETERS, ms),
                f"{medians[j] / ms:.2f}x")  # fmt: skip


def floor_table() -> None:
    """Milliseconds of a step by op: measured alone, its floor, and how near it is."""
    dtype = "bfloat16"
    row("op", "calls a step", "ms a step", "floor, ms", "share of its floor reached")
    print("|---|---|---|---|---|")
    total = [0.0, 0.0]

    def show(name, calls, ms, floor):
        row(name, str(calls), f"{ms:.1f}", f"{floor:.1f}", f"{floor / ms:.0%}")
        total[0] += ms
        total[1] += floor

    for name, (op, case, calls) in d12().items():
        ms = calls * sum(in_turn(passes(op, case, dtype, "ffi", "auto")))
        flop, moved = work(name, dtype)
        flops = ATTENTION_FLOPS if name == "attention" else MATMUL_FLOPS
        show(name, calls, ms, 1000 * calls * (flop / flops[dtype] + moved / BYTES))
    norm, update = in_turn(optimizer("auto", "ffi"))
    show("global_norm", 1, norm, 4000 * PARAMETERS / BYTES)
    show("adamw", 1, update, 28000 * PARAMETERS / BYTES)
    show("sum", "", *total)


def main(_):
    ffi.require(jax.default_backend())
    isas = ffi.supported_isas() if ISAS.value == ["all"] else ISAS.value
    print(f"{describe()}\n\nd12, B={B.value}, T={T.value}; median of {ROUNDS.value}.\n")
    if FLOORS.value:
        floor_table()
    else:
        isa_table(list(isas))


if __name__ == "__main__":
    app.run(main)
