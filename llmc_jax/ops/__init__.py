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
    classifier,
    encoder,
    global_norm,
    layernorm,
    matmul,
    mlp,
    residual_layernorm,
)
from llmc_jax.ops.op import Op


class Ops(NamedTuple):
    """One implementation of each op."""

    encoder: Op
    layernorm: Op
    residual_layernorm: Op
    matmul: Op
    attention: Op
    mlp: Op
    classifier: Op
    adamw: Callable
    global_norm: Callable


TABLE = {
    "encoder": encoder.IMPLEMENTATIONS,
    "layernorm": layernorm.IMPLEMENTATIONS,
    "residual_layernorm": residual_layernorm.IMPLEMENTATIONS,
    "matmul": matmul.IMPLEMENTATIONS,
    "attention": attention.IMPLEMENTATIONS,
    "mlp": mlp.IMPLEMENTATIONS,
    "classifier": classifier.IMPLEMENTATIONS,
    "adamw": adamw.IMPLEMENTATIONS,
    "global_norm": global_norm.IMPLEMENTATIONS,
}

# What --ops=auto takes on a platform instead of jnp, where its kernel library is loaded.
# A line needs a measured gain: benchmarks/results/cpu_ops.md.
DEFAULTS = {"cpu": dict.fromkeys(TABLE, "ffi")}


def select(spec: str, platform: str) -> tuple[Ops, dict[str, str]]:
    """The ops that --ops=`spec` names on `platform` (cpu, gpu, tpu), and their names.

    spec: words separated by commas: auto, jnp or ffi for every op that has it, op=name for one;
    later words win. Raises BadInput for an op or implementation that does not exist or whose
    kernel library is not loaded.
    """
    chosen = _auto(platform)
    for word in filter(None, spec.split(",")):
        op, _, name = word.rpartition("=")
        if op:
            chosen[op] = _named(op, name, word)
        elif name == "auto":
            chosen = _auto(platform)
        else:
            chosen |= _everywhere(name)
    if "ffi" in chosen.values():
        ffi.require(platform)
    return Ops(**{op: TABLE[op][name] for op, name in chosen.items()}), chosen


def _auto(platform: str) -> dict[str, str]:
    """The default row of a platform; jnp throughout where its library is not loaded."""
    row = DEFAULTS.get(platform, {}) if ffi.available(platform) else {}
    return {op: row.get(op, "jnp") for op in TABLE}


def _named(op: str, name: str, word: str) -> str:
    if op not in TABLE:
        raise BadInput(f"--ops={word}: there is no op '{op}'; the ops are {', '.join(TABLE)}.")
    if name not in TABLE[op]:
        raise BadInput(
            f"--ops={word}: {op} has no implementation '{name}'; it has {', '.join(TABLE[op])}."
        )
    return name


def _everywhere(name: str) -> dict[str, str]:
    row = {op: name for op, implementations in TABLE.items() if name in implementations}
    if not row:
        names = sorted({name for implementations in TABLE.values() for name in implementations})
        raise BadInput(
            f"--ops={name}: no op has an implementation '{name}'; "
            f"write auto, {', '.join(names)}, or op=name."
        )
    return row
