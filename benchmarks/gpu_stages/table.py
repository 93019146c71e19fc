"""The results as Markdown, from the lines of JSON alone: what was measured last of each row."""

import collections

from absl import app

from benchmarks.gpu_stages import results, sizes

# The milliseconds of a step, each part as good as cuDNN, cuBLAS and the memory allow, for the
# groups of breakdown.py.
FLOOR = {
    "gemm": 61.5,
    "attention": 15.9,
    "layernorm": 4.5,
    "gelu": 2.25,
    "classifier": 3.07,
    "adamw, norm": 0.87,
    "encoder": 0.3,
}
FLOOR_MS = 88.4
NOT_RUN = "not run"


def main(_) -> None:
    path = results.file().with_suffix(".md")
    text = render(results.read())
    path.write_text(text)
    print(summary(results.read()))


def summary(records: list[dict]) -> str:
    """What is worth reading at once; what matters most comes last, where a terminal keeps it."""
    rows = results.latest(records)
    steps = [row for row in rows if row["stage"] == "step"]
    correct = [row for row in rows if row["stage"] == "correctness"]
    wrong = [f"{row['op']} {row['by']}: {row['failed']}" for row in correct if "failed" in row]
    lines = [
        *missing(records, rows),
        "",
        *pass_summary(rows),
        "",
        f"correct: {sum(bool(row.get('ok')) for row in correct)}; wrong: {wrong or 'none'}",
        "",
        *step_table(steps),
    ]
    return "\n".join(lines)


def render(records: list[dict]) -> str:
    rows = results.latest(records)
    by_stage = collections.defaultdict(list)
    for row in rows:
        by_stage[row["stage"]].append(row)
    return (
        "\n\n".join(
            [
                "# GPU: the step and its parts against PyTorch and the floor",
                introduction(by_stage["sanity"]),
                *section("The step", step_table(by_stage["step"])),
                *section("Passes alone", pass_table(rows)),
                *section("Ceilings", ceiling_table(by_stage["ceilings"])),
                *section("Kernels of a step, ms", breakdown_table(by_stage["breakdown"])),
                *section("Correctness", correctness_table(by_stage["correctness"])),
                *section("The machine", machine_list(by_stage)),
                *section("What was not measured", missing(records, rows)),
            ]
        )
        + "\n"
    )


def introduction(sanity: list[dict]) -> str:
    return (
        f"`python -m benchmarks.gpu` on {gpu(sanity)}: d12 (GPT-2 124M), B=64, T=1024, bfloat16. "
        "The lines of JSON beside this file have the whole; `python -m benchmarks.gpu "
        "--stages=table` makes it again from them. MFU is against 989 TFLOP/s (dense bfloat16 of "
        "the datasheet), with the operations of a token as llm.c counts them (803.5 million, "
        "causal attention half) and as nanoGPT does (855.4). The floor of a step is that of an "
        f"H200, {FLOOR_MS} ms: products at 790 TFLOP/s, attention at cuDNN's best, each tensor "
        "once at 4.3 TB/s. (An H100's memory gives about 3.) A run takes at most 8 "
        "minutes; what they were too short for `--stages` adds: see the top of benchmarks/gpu.py."
    )


def gpu(sanity: list[dict]) -> str:
    """What nvidia-smi calls the GPU."""
    said = [line for row in sanity for line in row.get("nvidia-smi", [])]
    names = [line.split(": ", 1)[1] for line in said if line.startswith("Product Name: ")]
    return f"one {names[0]}" if names else "no GPU so far"


def section(title: str, lines: list[str]) -> list[str]:
    return [f"## {title}", "\n".join(lines)]


def table(heads: list[str], body: list[list]) -> list[str]:
    body = body or [[NOT_RUN]]
    lines = [heads, ["---"] * len(heads)]
    lines += [[*map(str, cells), *[""] * (len(heads) - len(cells))] for cells in body]
    return ["| " + " | ".join(x.replace("|", "\\|") for x in cells) + " |" for cells in lines]


def reason(row: dict) -> str:
    """Why a row has no number; ''."""
    for word in ("skipped", "failed"):
        if word in row:
            return f"{word}: {row[word]}"
    return ""


def step_table(rows: list[dict]) -> list[str]:
    heads = ["contestant", "ms", "min-max", "tokens/s", "MFU llm.c", "MFU nanoGPT", "x floor",
             "loss, last", "steps", "peak, GiB", "planned, GiB"]  # fmt: skip
    body = []
    for row in sorted(rows, key=lambda row: row.get("ms", 1e9)):
        if reason(row):
            body.append([row["by"], reason(row)])
            continue
        low, high = row["min_max"]
        body.append([
            row["by"], f"{row['ms']:.2f}", f"{low:.2f}-{high:.2f}", row["tokens_per_s"],
            f"{row['mfu_llmc']:.1%}", f"{row['mfu_nanogpt']:.1%}", f"{row['ms'] / FLOOR_MS:.2f}",
            row["loss_last"], row["steps"], row["peak_gib"], row.get("planned_gib", ""),
        ])  # fmt: skip
    return table(heads, body)


def measured_ceilings(rows: list[dict]) -> tuple[float, float, str]:
    """(FLOP/s, bytes/s, what they are)."""
    ceilings = [row for row in rows if row["stage"] == "ceilings"]
    flops = [row["tflops"] for row in ceilings if row.get("tflops")]
    copies = [row["tbs"] for row in ceilings if row.get("tbs")]
    told = [
        f"products {'measured' if flops else 'assumed'}",
        f"memory {'measured' if copies else 'assumed'}",
    ]
    return (
        max(flops) * 1e12 if flops else sizes.GEMM,
        max(copies) * 1e12 if copies else sizes.BANDWIDTH,
        ", ".join(told),
    )


def passes(rows: list[dict]) -> dict[str, list[dict]]:
    """op -> its rows, ours and PyTorch's."""
    by_op = collections.defaultdict(list)
    for row in rows:
        if row["stage"] in ("kernels", "kernels_torch"):
            by_op[row["op"]].append(row)
    return by_op


def pass_summary(rows: list[dict]) -> list[str]:
    """Ours is the fastest kernel of the package, rivals everybody else, jnp by XLA among them."""
    flops, bandwidth, _ = measured_ceilings(rows)
    body = []
    for op, entries in passes(rows).items():
        floor = floor_ms(op, flops, bandwidth)
        ours = best(entry for entry in entries if is_ours(entry["by"]))
        rival = best(entry for entry in entries if not is_ours(entry["by"]))
        total = f"{ours['ms'] * sizes.calls(op):.2f}" if ours else ""
        ratio = f"{rival['ms'] / ours['ms']:.2f}x" if ours and rival else ""
        share = f"{floor / ours['ms']:.0%}" if ours else ""
        body.append([op, cell(ours), cell(rival), f"{floor:.3f}", ratio, share, total])
    heads = ["op", "ours, ms", "best rival, ms", "floor, ms", "rival / ours", "share of the floor",
             "ours in a step, ms"]  # fmt: skip
    return table(heads, body)


def pass_table(rows: list[dict]) -> list[str]:
    _, _, told = measured_ceilings(rows)
    every = [
        [row["op"], row["by"], f"{row['ms']:.3f}" if "ms" in row else reason(row), rate(row)]
        for entries in passes(rows).values()
        for row in entries
    ]
    return [
        f"Floors: {told}; attention at {sizes.ATTENTION['forward'] / 1e12:.0f} TFLOP/s forward "
        f"and {sizes.ATTENTION['backward'] / 1e12:.0f} backward.",
        "",
        *pass_summary(rows),
        "",
        *table(["op", "by", "ms", "rate"], every),
    ]


def floor_ms(op: str, flops: float, bandwidth: float) -> float:
    flop, moved = sizes.work(op)
    if op.startswith("attention"):
        flops = sizes.ATTENTION[op.split()[-1]]
    return 1000 * (flop / flops + moved / bandwidth)


def is_ours(by: str) -> bool:
    return by.startswith(("cuda", "emulated"))


def best(entries) -> dict | None:
    return min((e for e in entries if "ms" in e), key=lambda e: e["ms"], default=None)


def cell(entry: dict | None) -> str:
    return f"{entry['ms']:.3f} ({entry['by']}; {rate(entry)})" if entry else ""


def rate(row: dict) -> str:
    if "tflops" in row:
        return f"{row['tflops']} TFLOP/s"
    return f"{row['tbs']} TB/s" if "tbs" in row else ""


def ceiling_table(rows: list[dict]) -> list[str]:
    ops = dict.fromkeys(row["op"] for row in rows)
    cells = {(row["op"], row["by"]): rate(row) or reason(row) for row in rows}
    body = [[op, cells.get((op, "torch"), ""), cells.get((op, "jax"), "")] for op in ops]
    return table(["", "torch", "jax"], body)


def breakdown_table(rows: list[dict]) -> list[str]:
    done = [row for row in rows if "groups" in row]
    names = [*FLOOR, *dict.fromkeys(name for row in done for name in row["groups"])]
    body = [
        [name, FLOOR.get(name, ""), *(row["groups"].get(name, 0) for row in done)]
        for name in dict.fromkeys(names)
    ]
    body.append(["sum", FLOOR_MS, *(row["ms"] for row in done)])
    lines = table(["group", "floor", *(row["by"] for row in done)], body if done else [])
    for row in done:
        longest = [[name, ms] for name, ms in list(row["kernels"].items())[:25]]
        lines += ["", *table([f"kernel of {row['by']}", "ms a step"], longest)]
    return lines


def correctness_table(rows: list[dict]) -> list[str]:
    body = [
        [row["op"], row["by"], "ok" if row.get("ok") else reason(row),
         ", ".join(map(str, row.get("errors", []))), row.get("same_bits", "")]
        for row in rows
    ]  # fmt: skip
    right, failed = (sum(key in row for row in rows) for key in ("ok", "failed"))
    heads = ["op", "by", "verdict", "relative errors (outputs, gradients)", "same bits again"]
    return [f"{right} are right, {failed} failed.", "", *table(heads, body)]


def machine_list(by_stage: dict) -> list[str]:
    plain = ("stage", "row", "op", "by", "time")
    lines = []
    for name in ("sanity", "build", "sanitizer"):
        for row in by_stage[name]:
            said = "; ".join(f"{k}: {v}" for k, v in row.items() if k not in plain)
            lines.append(f"- {row['op']} ({row['by']}): {said}")
    return lines or [NOT_RUN]


def missing(records: list[dict], rows: list[dict]) -> list[str]:
    """Rows and stages without a number, and why."""
    without = [row for row in rows if reason(row)]
    lines = [f"- {row['stage']}: {row['op']} by {row['by']}: {reason(row)}" for row in without]
    seen = {(row["stage"], row["op"], row["by"]) for row in rows}
    planned = {(r["stage"], *pair): None for r in records for pair in r.get("planned", [])}
    lines += [
        f"- {name}: {op} by {by}: not reached"
        for name, op, by in planned
        if (name, op, by) not in seen
    ]
    ends = {record["stage"]: record["end"] for record in records if "end" in record}
    lines += [f"- stage {name}: {end}" for name, end in ends.items() if end != "done"]
    return lines or [NOT_RUN if not records else "Nothing."]


if __name__ == "__main__":
    app.run(main)
