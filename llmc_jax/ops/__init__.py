"""The ops of GPT-2, their implementations, and the choice between them.

Letters of all shapes: B batch, T time, C channels, NH heads, HS = C / NH head size, V vocabulary,
Vp padded vocabulary, L layers, OC output channels, maxT longest sequence; N = B * T rows.
The contract of an op is in op.py. `select` is called once, by a program's main; below it there
is no `if` on a platform or an implementation.
"""

from collections.abc import Callable
from typing import NamedTuple

from llmc_jax import ffi
from llmc_jax.config import BadInput
from llmc_jax.ops import (
    adamw,
    attention,
    cached_attention,
    classifier,
    encoder,
    global_norm,
    layernorm,
    matmul,
    mlp,
    residual_layernorm,
)
from llmc_jax.ops.op import Op, named


class Ops(NamedTuple):
    """One implementation of each op."""

    encoder: Op
    layernorm: Op
    residual_layernorm: Op
    matmul: Op
    attention: Op
    mlp: Op
    classifier: Op
    logits: Callable
    cached_attention: Callable
    adamw: Callable
    global_norm: Callable

    def in_factors(self) -> "Ops":
        """These, but matmul and mlp leave gradients of weights in their factors (factors.py) if
        they can: for who does nothing with them but adamw and global_norm."""
        return self._replace(matmul=self.matmul.in_factors(), mlp=self.mlp.in_factors())


TABLE = {
    "encoder": encoder.IMPLEMENTATIONS,
    "layernorm": layernorm.IMPLEMENTATIONS,
    "residual_layernorm": residual_layernorm.IMPLEMENTATIONS,
    "matmul": matmul.IMPLEMENTATIONS,
    "attention": attention.IMPLEMENTATIONS,
    "mlp": mlp.IMPLEMENTATIONS,
    "classifier": classifier.IMPLEMENTATIONS,
    "logits": classifier.LOGITS,
    "cached_attention": cached_attention.IMPLEMENTATIONS,
    "adamw": adamw.IMPLEMENTATIONS,
    "global_norm": global_norm.IMPLEMENTATIONS,
}

# What a pass has to do at least, for floors: of (forward, backward); of the optimizer's two, given
# the gradients.
COST = {
    "encoder": encoder.cost,
    "layernorm": layernorm.cost,
    "residual_layernorm": residual_layernorm.cost,
    "matmul": matmul.cost,
    "attention": attention.cost,
    "mlp": mlp.cost,
    "classifier": classifier.cost,
    "adamw": adamw.cost,
    "global_norm": global_norm.cost,
}

# Where an implementation runs (jax.devices()' platform) and the library it needs, by the first
# word of its name. Others (jnp, chunked) run everywhere and need none.
PLATFORM = {"ffi": "cpu", "cuda": "gpu", "cudnn": "gpu", "pallas": "tpu", "emulated": "cpu"}
LIBRARY = {"ffi": "cpu", "cuda": "cuda", "emulated": "emulated"}

# What --ops=auto takes on a platform instead of jnp, where the library it needs is loaded.
# A line needs a measured gain: benchmarks/results/cpu_ops.md and gpu.md.
# On an H200 jnp's encoder is as fast, but where many rows are of one token its backward takes 300
# times as long in bfloat16: rows are added by a loop of compare-and-swap.
# The TPU's has not been measured: it holds what keeps the (T, T) scores and the logits out of a
# small memory.
DEFAULTS = {
    "cpu": {op: "ffi" for op, names in TABLE.items() if "ffi" in names},
    "gpu": {op: "cuda" for op, names in TABLE.items() if "cuda" in names} | {"matmul": "rounded"},
    "tpu": {"attention": "pallas", "classifier": "chunked"},
}


def select(
    spec: str, platform: str, head_size: int | None = None, *, here: bool = True
) -> tuple[Ops, dict[str, str]]:
    """The ops that --ops=`spec` names on `platform` (cpu, gpu, tpu), and their names.

    spec: words separated by commas: auto, or the name of an implementation for every op that has
    it, or op=name for one; later words win. emulated is cuda on the CPU, by the emulator. Raises
    BadInput for an op or implementation that does not exist, that does not run on `platform`, or
    whose kernel library is not loaded. head_size: of the model; auto takes jnp's attention for one
    that the CUDA kernels lack. here: False where the ops are not to run, only to be counted: then
    no library is needed.
    """
    chosen = _auto(platform, head_size, here)
    for word in filter(None, spec.split(",")):
        op, _, name = word.rpartition("=")
        if op:
            chosen[op] = _named(op, name, word, platform)
        elif name == "auto":
            chosen = _auto(platform, head_size, here)
        else:
            chosen |= _everywhere(name, platform)
    for name in chosen.values():
        if here and (library := LIBRARY.get(_family(name))):
            ffi.require(library, asked=name)
    row = {op: named(op, implementation(op, name)) for op, name in chosen.items()}
    return Ops(**row), chosen


def implementation(op: str, name: str):
    """The implementation `name` of `op`."""
    return TABLE[op][name.replace("emulated", "cuda")]


def names(op: str, platform: str) -> tuple[str, ...]:
    """The implementations of `op` that run on `platform`."""
    every = dict.fromkeys(TABLE[op])
    every |= {name.replace("cuda", "emulated"): None for name in TABLE[op]}
    return tuple(name for name in every if PLATFORM.get(_family(name), platform) == platform)


def _family(name: str) -> str:
    return name.partition("_")[0]


def _auto(platform: str, head_size: int | None, here: bool) -> dict[str, str]:
    """The default row of a platform; jnp throughout where it needs a library that is not loaded."""
    library = ffi.LIBRARY_OF.get(platform)
    missing = here and library and not ffi.available(library)
    row = {} if missing else DEFAULTS.get(platform, {})
    chosen = {op: row.get(op, "jnp") for op in TABLE}
    if chosen["attention"] == "cuda" and head_size not in (None, *attention.CUDA_HEAD_SIZES):
        chosen["attention"] = "jnp"
    return chosen


def _named(op: str, name: str, word: str, platform: str) -> str:
    if op not in TABLE:
        raise BadInput(f"--ops={word}: there is no op '{op}'; the ops are {', '.join(TABLE)}.")
    if name not in names(op, platform):
        raise BadInput(
            f"--ops={word}: {op} has no implementation '{name}' on this platform ({platform}); "
            f"it has {', '.join(names(op, platform))}."
        )
    return name


def _everywhere(name: str, platform: str) -> dict[str, str]:
    row = {op: name for op in TABLE if name in names(op, platform)}
    if not row:
        every = sorted({name for op in TABLE for name in names(op, platform)})
        raise BadInput(
            f"--ops={name}: no op has an implementation '{name}' on this platform ({platform}); "
            f"write auto, {', '.join(every)}, or op=name."
        )
    return row
