"""Where our step's time goes: its GPU kernels by name, from JAX's profiler."""

import collections
import gzip
import json
import os
import re
import tempfile
from functools import partial
from pathlib import Path

import jax

from benchmarks.gpu_stages import results, stage
from benchmarks.gpu_stages.stage import Row

STEPS = 3
NAMES = 40  # of kernels that are written down, the longest first

# Group -> what its kernels' names have in them, ours first; the first that fits. The groups of
# which the floor is known are in table.py.
GROUPS = (
    ("attention", r"llmc.*(attention|hopper)|sdpa|flash|mha"),
    ("layernorm", r"Layernorm"),
    ("classifier", r"CrossEntropy"),
    ("encoder", r"AddRuns|JoinRuns|AddBatch|scatter|[sS]ort"),
    ("gelu", r"Gelu"),
    ("adamw, norm", r"AdamW|SumOfSquares|RootOfSum"),
    ("gemm", r"gemm|nvjet|xmma|cutlass|cublas|matmul"),
    ("copies", r"[mM]emcpy|[mM]emset|copy|transpose|concatenate|slice"),
    ("reductions", r"reduce|AddPartials"),
    ("XLA's other fusions", r""),
)


def rows() -> list[Row]:
    gpu = results.platform() == "gpu"
    specs = ("cuda", "jnp,attention=cudnn") if gpu else ("jnp",)
    listed = [Row("kernels", f"--ops={spec}", partial(profile, spec), 90) for spec in specs]
    if gpu:  # for a profiler that does not look into CUDA graphs
        again = partial(profile, specs[0], "--xla_gpu_enable_command_buffer=")
        listed.append(Row("kernels", f"--ops={specs[0]}, no command buffers", again, 90))
    return listed


def profile(spec: str, xla_flags: str = "") -> dict:
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags}".strip()
    from benchmarks.gpu_stages import our_step

    step = our_step.prepare(spec).make
    jax.block_until_ready([step() for _ in range(2)])
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready([step() for _ in range(STEPS)])
        events = load(Path(folder))
    by_name = milliseconds(events)
    if not by_name:
        raise RuntimeError(f"none of the trace's {len(events)} events is a kernel's")
    groups = collections.Counter()
    for name, ms in by_name.items():
        groups[group(name)] += ms
    longest = sorted(by_name.items(), key=lambda pair: -pair[1])[:NAMES]
    return dict(
        ms=round(sum(by_name.values()), 3),
        groups={name: round(ms, 3) for name, ms in groups.most_common()},
        kernels={name[:120]: round(ms, 3) for name, ms in longest},
    )


def load(folder: Path) -> list[dict]:
    """The events of the trace that the profiler wrote."""
    events = []
    for path in folder.rglob("*.trace.json.gz"):
        with gzip.open(path, "rt") as file:
            events += json.load(file)["traceEvents"]
    return events


def milliseconds(events: list[dict]) -> dict[str, float]:
    """Kernel -> milliseconds in a step. A GPU's kernels are in lines called Stream; other lines
    repeat them by other names. (On a CPU: what XLA's own threads did.)"""
    processes, lines = {}, {}
    for event in events:
        if event.get("ph") == "M" and event["name"] == "process_name":
            processes[event["pid"]] = event["args"]["name"]
        if event.get("ph") == "M" and event["name"] == "thread_name":
            lines[event["pid"], event["tid"]] = event["args"]["name"]
    total = collections.Counter()
    for event in events:
        if event.get("ph") != "X":
            continue
        process = processes.get(event["pid"], "")
        line = lines.get((event["pid"], event["tid"]), "")
        if results.platform() == "cpu":
            wanted = "XLA" in line or "Eigen" in line
        else:
            wanted = "GPU" in process and line.startswith("Stream")
        if wanted:
            total[event["name"]] += event["dur"] / 1000 / STEPS
    return dict(total)


def group(name: str) -> str:
    return next(title for title, words in GROUPS if re.search(words, name))


if __name__ == "__main__":
    stage.run("breakdown", rows)
