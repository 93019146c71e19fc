"""The measurements as Markdown, and the words that charts and page share."""

import statistics
from collections.abc import Callable

GIB = 2**30
UNKNOWN = ""  # of what a platform does not tell


def workload(r: dict) -> str:
    again = f", recompute {r['recompute']}" if r["recompute"] else ""
    return f"{r['model_name']}, B={r['B']}, T={r['T']}, {r['dtype']}{again}"


def ops(r: dict) -> str:
    """What was asked for, and the instruction set of the CPU's kernels."""
    return f"{r['ops_asked']} ({r['cpu_isa']})" if r["cpu_isa"] else r["ops_asked"]


def title(r: dict) -> str:
    """What a bar is called."""
    count = f"{r['devices']} x " if r["devices"] > 1 else ""
    return f"{count}{r['device']}, --ops={ops(r)}"


def median_ms(r: dict) -> float:
    return statistics.median(r["step_ms"])


# Heading -> cell, of a measurement.
COLUMNS: dict[str, Callable[[dict], str]] = {
    "device": lambda r: f"{r['devices']} x {r['device']}" if r["devices"] > 1 else r["device"],
    "model, batch, type": workload,
    "ops": ops,
    "ms a step": lambda r: f"{median_ms(r):,.1f}",
    "min-max": lambda r: f"{min(r['step_ms']):,.1f}-{max(r['step_ms']):,.1f}",
    "steps": lambda r: str(len(r["step_ms"])),
    "tokens/s": lambda r: f"{r['tokens_per_s']:,.0f}",
    "MFU, llm.c": lambda r: f"{r['mfu']['llm.c']:.1%}",
    "MFU, PaLM": lambda r: f"{r['mfu']['PaLM']:.1%}",
    "of, TFLOP/s": lambda r: f"{r['peak']['flops'] / 1e12:,.3g} ({r['peak']['name']})",
    "peak memory, GiB": lambda r: (
        f"{r['memory_bytes'] / GIB:.2f}" if r["memory_bytes"] else UNKNOWN
    ),
    "planned, GiB": lambda r: f"{r['planned_bytes'] / GIB:.2f}",
    "compile, s": lambda r: f"{r['compile_s']:.1f}",
    "J a token": lambda r: (
        UNKNOWN
        if r["joules_per_step"] is None
        else f"{r['joules_per_step'] / (r['B'] * r['T']):.3g}"
    ),
    "copy, GB/s": lambda r: f"{r['ceilings']['copy_bytes_per_s'] / 1e9:,.1f}",
    "matmul, TFLOP/s": lambda r: f"{r['ceilings']['matmul_flops'] / 1e12:,.3g}",
    "measured on": lambda r: (
        f"{r['time'][:10]}, {r['commit']}, jax {r['versions'].get('jax', '?')}"
    ),
}


def passes(r: dict) -> list[tuple[str, float | None, float]]:
    """(pass, milliseconds of it in a step or None, those at the measured ceilings), most first."""
    roof = r["ceilings"]
    rows = [
        (
            name,
            one["ms"],
            1000 * max(one["flop"] / roof["matmul_flops"], one["bytes"] / roof["copy_bytes_per_s"]),
        )
        for name, one in r["passes"].items()
    ]
    if r["other_ms"]:
        rows.append(("what is in no op", r["other_ms"], 0.0))
    return sorted(rows, key=lambda row: -(row[1] or row[2]))


def bound(one: dict, roof: dict) -> str:
    """Which ceiling a pass meets first."""
    by_matmul = one["flop"] / roof["matmul_flops"] > one["bytes"] / roof["copy_bytes_per_s"]
    return "matmul" if by_matmul else "copy"


def markdown(records: list[dict], skipped: list[str]) -> str:
    """The whole report."""
    lines = [
        "# The training step on every device that was measured",
        "",
        "By `python -m llmc_jax.compare`. A step is forward, backward, clipping and AdamW; "
        "medians. MFU is a part of the peak named, with llm.c's count of operations (causal "
        "attention half) and PaLM's (whole); where the device is not in the table of datasheets "
        "(llmc_jax/devices.py), of the matmul rate measured there. Peak memory is the "
        "allocator's on a device, VmHWM on a CPU (the interpreter included).",
        "",
        *grid(list(COLUMNS), [[cell(r) for cell in COLUMNS.values()] for r in records]),
    ]
    lines += [f"- passed over: {one}" for one in skipped]
    for r in records:
        lines += ["", f"## {title(r)}: {workload(r)}", "", *grid(*breakdown(r))]
    return "\n".join(lines) + "\n"


def breakdown(r: dict) -> tuple[list[str], list[list[str]]]:
    """The table of a measurement's passes against its ceilings: its heads and its rows."""
    total = sum(ms or 0 for _, ms, _ in passes(r))
    body = []
    for name, ms, floor in passes(r):
        one = r["passes"].get(name)
        body.append([
            name,
            f"{ms:,.2f}" if ms else UNKNOWN,
            f"{ms / total:.1%}" if ms else UNKNOWN,
            f"{floor:,.2f}" if one else UNKNOWN,
            f"{floor / ms:.0%}" if ms and one else UNKNOWN,
            bound(one, r["ceilings"]) if one else UNKNOWN,
        ])  # fmt: skip
    heads = ["pass", "ms a step (traced)", "share", "floor, ms", "share of its floor", "bound by"]
    return heads, body


def grid(heads: list[str], body: list[list[str]]) -> list[str]:
    rows = ([*heads], ["---"] * len(heads), *body)
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
