"""Where a step's time goes by op, from the profiler's trace, and what each op needs at least."""

import collections
import gzip
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from llmc_jax.config import ModelConfig
from llmc_jax.models import gpt2
from llmc_jax.ops import COST, cases
from llmc_jax.ops.op import Cost, size
from llmc_jax.training.profile import INSTRUCTION, start_trace

PASS = re.compile(r"\b([a-z_]+\.(?:forward|backward)|adamw|global_norm)\b")
OTHER = "what is in no op"


def needed(model: ModelConfig, B: int, T: int, dtype: str) -> dict[str, Cost]:
    """Pass -> FLOP and bytes of all its calls in a step, by the ops' own cost functions."""
    sums = collections.defaultdict(lambda: Cost(0, 0))
    for use in cases.uses(model, B, T).values():
        passes = COST[use.op](*cases.shapes(use.case, dtype), **use.case.static)
        ways = (("forward", use.forward), ("backward", use.backward))
        for (way, calls), cost in zip(ways, passes, strict=True):
            before = sums[f"{use.op}.{way}"]
            sums[f"{use.op}.{way}"] = Cost(
                before.flop + calls * cost.flop, before.bytes + calls * cost.bytes
            )
    for op in ("adamw", "global_norm"):
        sums[op] = COST[op](gpt2.gradient_shapes(model, dtype))
    return dict(sums)


def with_factors(
    needs: dict[str, Cost], model: ModelConfig, rows: int, dtype: str
) -> dict[str, Cost]:
    """`needs` of a step that leaves the gradients of the layers' weights in their factors
    (ops/factors.py), for a batch of `rows` tokens: AdamW makes these products, which are half of
    backward's, and the norm takes those of the factors' rows with each other, of which half follow
    from the others. Both read factors instead of gradients."""
    gradients = jax.tree.leaves(gpt2.gradient_shapes(model, dtype).block)
    weights = [g for g in gradients if gpt2.is_matrix(g)]
    columns = sum(sum(weight.shape) for weight in weights)  # of dout and inp
    less = size(weights) - rows * columns * jnp.dtype(dtype).itemsize
    changed, adamw, norm = dict(needs), needs["adamw"], needs["global_norm"]
    made = 0
    for name in ("matmul.backward", "mlp.backward"):
        half = needs[name].flop / 2
        changed[name] = needs[name]._replace(flop=half)
        made += half
    changed["adamw"] = Cost(adamw.flop + made, adamw.bytes - less)
    changed["global_norm"] = Cost(norm.flop + rows * rows * columns, norm.bytes - less)
    return changed


def joined(needs: dict[str, Cost], by_pass: dict[str, float]) -> dict[str, Cost]:
    """`needs` with a backward that was not seen in the pass forward, which then does its work
    (a classifier that makes gradients while it has logits)."""
    joined = dict(needs)
    for name in needs:
        op, _, way = name.partition(".")
        forward = f"{op}.forward"
        if way == "backward" and name not in by_pass and forward in by_pass:
            both = (joined[forward], joined.pop(name))
            joined[forward] = Cost(*map(sum, zip(*both, strict=True)))
    return joined


def traced(step: Callable[[], object], steps: int, hlo: str, devices: int = 1) -> dict[str, float]:
    """Pass -> milliseconds in a step on one of `devices`, their mean, from a trace of `steps` of
    them; {} where it tells nothing.

    step makes one step and waits for it; hlo is the text of its compiled program. Where several
    threads of a CPU work at once, the sum is more than a step.
    """
    with tempfile.TemporaryDirectory() as folder:
        start_trace(folder)
        for _ in range(steps):
            step()
        jax.profiler.stop_trace()
        events = []
        for path in Path(folder).rglob("*.trace.json.gz"):
            with gzip.open(path, "rt") as file:
                events += json.load(file)["traceEvents"]
    sums = collections.Counter()
    owner = {name: pass_of(path) for name, path in INSTRUCTION.findall(hlo)}
    for name, microseconds in instructions(events):
        sums[owner.get(name, OTHER)] += microseconds / 1000 / steps / devices
    return dict(sums)


def pass_of(op_name: str) -> str:
    """The op's pass that an instruction belongs to, by XLA's name of where it came from."""
    found = PASS.findall(op_name)
    return found[0] if found else OTHER


def instructions(events: list[dict]) -> list[tuple[str, float]]:
    """(instruction, microseconds) of what ran. A device's trace shows it on several lines, of which
    the one called "XLA Ops" or else the streams are taken."""
    lines = {
        (e["pid"], e.get("tid")): e["args"]["name"]
        for e in events
        if e.get("ph") == "M" and e["name"] == "thread_name"
    }
    ran = [
        (lines.get((e["pid"], e["tid"]), ""), e["args"]["hlo_op"], e["dur"])
        for e in events
        if e.get("ph") == "X" and "hlo_op" in e.get("args", {}) and e["name"][:5] != "end: "
    ]
    for wanted in ("XLA Ops", "Stream"):
        if some := [(name, dur) for line, name, dur in ran if line.startswith(wanted)]:
            return some
    return [(name, dur) for _, name, dur in ran]
