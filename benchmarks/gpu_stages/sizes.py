"""The problem all stages measure, and the work in it: floating-point operations and bytes.

d12 with B=64 and T=1024 in bfloat16; X is an activation (B,T,C). Bytes are the fewest that an op
must read and write, each once; operations of causal attention are those of half of the square.
"""

from typing import NamedTuple

import jax.numpy as jnp

from benchmarks.gpu_stages import results
from llmc_jax.config import ModelConfig, model_config
from llmc_jax.models import gpt2
from llmc_jax.ops import COST, cases
from llmc_jax.ops.op import Cost


class Sizes(NamedTuple):
    B: int
    T: int
    model: ModelConfig
    copy_bytes: int  # of the array that is copied to measure the memory
    warmup: int  # steps
    rounds: int  # timed, of `steps` each
    steps: int


def sizes() -> Sizes:
    if results.small():
        model = ModelConfig(L=1, NH=1, C=64, maxT=64, V=250, Vp=256)
        return Sizes(2, 64, model, 1 << 20, 1, 2, 1)
    return Sizes(64, 1024, model_config("d12"), 1 << 32, 10, 3, 10)


# Rates assumed where nothing was measured: an H200's bf16 products and its memory.
GEMM, BANDWIDTH = 790e12, 4.3e12
# What a good attention is known to reach at this size, forward and backward.
ATTENTION = dict(forward=310e12, backward=260e12)
PEAK = 989e12  # dense bf16 of the datasheet, the denominator of every MFU here

KINDS = ("fwd", "dgrad", "wgrad")


def gemms() -> dict[str, tuple[int, int]]:
    """name -> (OC, C) of the step's matrix products, all of them of B*T rows."""
    C, Vp = sizes().model.C, sizes().model.Vp
    return {
        "qkv": (3 * C, C),
        "attproj": (C, C),
        "fc": (4 * C, C),
        "fcproj": (C, 4 * C),
        "logits": (Vp, C),
    }


def uses() -> dict[str, cases.Use]:
    """name -> a call of an op in the step."""
    B, T, model, *_ = sizes()
    return cases.uses(model, B, T)


def work(name: str) -> Cost:
    """Of "<op> forward" or "<op> backward", of a whole op, or of a matrix product "gemm <name>";
    zeros for what is not known here."""
    B, T, model, *_ = sizes()
    N, C, Vp = B * T, model.C, model.Vp
    X = 2 * N * C
    op, _, direction = name.rpartition(" ")
    if direction in ("forward", "backward") and (use := uses().get(op)):
        passes = COST[use.op](*cases.shapes(use.case, jnp.bfloat16), **use.case.static)
        flop, moved = passes[direction == "backward"]
        return Cost(flop, 0) if flop else Cost(0, moved)
    if op == "gemm":
        OC, C = gemms()[direction]
        return Cost(2 * N * OC * C, 0)
    gradients = gpt2.gradient_shapes(model, jnp.bfloat16)
    return {
        "gelu forward": Cost(0, 2 * 4 * X),
        "gelu backward": Cost(0, 3 * 4 * X),
        "classifier both": Cost(6 * N * C * Vp, 2 * 2 * N * Vp),
        "classifier in place": Cost(0, 2 * 2 * N * Vp),
        "adamw": COST["adamw"](gradients),
        "global_norm": COST["global_norm"](gradients),
    }.get(name, Cost(0, 0))


def calls(name: str) -> int:
    """How often "<op> <direction>" is in a step."""
    op, _, direction = name.rpartition(" ")
    if use := uses().get(op):
        return use.backward if direction == "backward" else use.forward
    return 1 if name.startswith(("classifier", "adamw", "global_norm")) else sizes().model.L


def flop_per_token() -> dict[str, float]:
    """As llm.c counts it (causal attention is half) and as nanoGPT and PaLM do."""
    flop = gpt2.flop_per_token(sizes().model, sizes().T)
    return {"llm.c": flop["llm.c"], "nanoGPT": flop["PaLM"]}


def rates(name: str, ms: float) -> dict:
    """What `ms` milliseconds for the work of `name` are in TFLOP/s or TB/s."""
    flop, moved = work(name)
    if flop:
        return dict(ms=round(ms, 4), tflops=round(flop / ms / 1e9, 1))
    return dict(ms=round(ms, 4)) | (dict(tbs=round(moved / ms / 1e9, 3)) if moved else {})
