"""The problem all stages measure, and the work in it: floating-point operations and bytes.

d12 with B=64 and T=1024 in bfloat16; X is an activation (B,T,C). Bytes are the fewest that an op
must read and write, each once; operations of causal attention are those of half of the square.
"""

from typing import NamedTuple

from benchmarks.gpu_stages import results
from llmc_jax.config import ModelConfig, model_config
from llmc_jax.ops import cases


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


def op_cases() -> dict:
    """name -> (op, case, calls in a step)."""
    B, T, model, *_ = sizes()
    C, L = model.C, model.L
    return {
        "attention": ("attention", cases.attention(B, T, model.NH, C // model.NH), L),
        "classifier": ("classifier", cases.classifier(B, T, C, model.V, model.Vp), 1),
        "encoder": ("encoder", cases.encoder(B, T, C, model.Vp, model.maxT), 1),
        "layernorm": ("layernorm", cases.layernorm(B, T, C), L + 1),
        "residual_layernorm": ("residual_layernorm", cases.residual_layernorm(B, T, C), L),
        "mlp": ("mlp", cases.mlp(B, T, C), L),
        "matmul qkv": ("matmul", cases.matmul(B, T, C, 3 * C), L),
        "matmul attproj": ("matmul", cases.matmul(B, T, C, C), L),
    }


class Work(NamedTuple):
    flop: float
    bytes: float


def work(name: str) -> Work:
    """Of "<op> forward" or "<op> backward", of a whole op, or of a matrix product "gemm <name>";
    zeros for what is not known here."""
    B, T, model, *_ = sizes()
    N, C, Vp = B * T, model.C, model.Vp
    X = 2 * N * C
    parameters = model.num_parameters
    op, _, direction = name.rpartition(" ")
    matrices = {"mlp": 8 * C * C, "matmul qkv": 3 * C * C, "matmul attproj": C * C}
    if op in matrices:
        return Work((2 if direction == "forward" else 4) * N * matrices[op], 0)
    if op == "attention":
        products = 2 if direction == "forward" else 5
        return Work(products * 2 * N * T / 2 * C, 0)
    if op == "gemm":
        OC, C = gemms()[direction]
        return Work(2 * N * OC * C, 0)
    return {
        "encoder forward": Work(0, 2 * X),
        "encoder backward": Work(0, X + 2 * X),  # rows of dwte that it adds to, read and written
        "layernorm forward": Work(0, 2 * X),
        "layernorm backward": Work(0, 3 * X),
        "residual_layernorm forward": Work(0, 4 * X),
        "residual_layernorm backward": Work(0, 4 * X),
        "gelu forward": Work(0, 2 * 4 * X),
        "gelu backward": Work(0, 3 * 4 * X),
        "classifier both": Work(6 * N * C * Vp, 2 * 2 * N * Vp),
        "classifier in place": Work(0, 2 * 2 * N * Vp),
        "adamw": Work(0, 28 * parameters),
        "global_norm": Work(0, 4 * parameters),
    }.get(name, Work(0, 0))


def calls(name: str) -> int:
    """How often "<op> <direction>" is in a step."""
    L = sizes().model.L
    once = ("classifier", "encoder", "adamw", "global_norm")
    if name.startswith(once):
        return 1
    # the model takes residual_layernorm's backward for every layernorm but the last
    return {"residual_layernorm backward": 2 * L, "layernorm backward": 1,
            "layernorm forward": L + 1}.get(name, L)  # fmt: skip


def flop_per_token() -> dict[str, float]:
    """As llm.c counts it (causal attention is half) and as nanoGPT and PaLM do."""
    _, T, model, *_ = sizes()
    N = model.num_parameters
    attention = model.L * model.C * T
    return {
        "llm.c": 6 * N + 6 * attention,
        "nanoGPT": 6 * (N - model.maxT * model.C) + 12 * attention,
    }


def rates(name: str, ms: float) -> dict:
    """What `ms` milliseconds for the work of `name` are in TFLOP/s or TB/s."""
    flop, moved = work(name)
    if flop:
        return dict(ms=round(ms, 4), tflops=round(flop / ms / 1e9, 1))
    return dict(ms=round(ms, 4)) | (dict(tbs=round(moved / ms / 1e9, 3)) if moved else {})
