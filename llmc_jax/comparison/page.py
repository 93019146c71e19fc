"""The measurements as one HTML page that needs nothing else: no script, no other file."""

import math
from html import escape
from pathlib import Path

from llmc_jax.comparison.charts import BEYOND, op_shares
from llmc_jax.comparison.table import COLUMNS, GIB, breakdown, title, workload

STYLE = Path(__file__).parent / "page.css"
COLOURS = 10  # of page.css, --op0 and on


def html(records: list[dict], skipped: list[str]) -> str:
    """The page."""
    told = "".join(f"<li>{escape(one)}</li>" for one in skipped)
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        "<link rel='icon' href='data:,'>"
        f"<title>llmc_jax compared</title><style>{STYLE.read_text()}</style>"
        "</head><body><h1>The training step on every device that was measured</h1>"
        "<p>A step is forward, backward, clipping and AdamW; medians. MFU is a part of the peak "
        "that the table names.</p>",
        chart("Tokens a second", records, lambda r: r["tokens_per_s"], "{:,.0f}"),
        chart("MFU, % of the peak (llm.c's count)", records, mfu, "{:.1f} %"),
        chart("Peak memory, GiB", records, lambda r: (r["memory_bytes"] or 0) / GIB, "{:.2f}"),
        chart("Joules a token", records, joules, "{:.3g}"),
        shares(records),
        f"<h2>All numbers</h2>{numbers(records)}{f'<ul>{told}</ul>' if told else ''}",
        *(details(r) for r in records),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part)


def mfu(r: dict) -> float:
    return 100 * r["mfu"]["llm.c"]


def joules(r: dict) -> float:
    """0 where the platform does not tell."""
    return (r["joules_per_step"] or 0) / (r["B"] * r["T"])


def label(r: dict) -> str:
    return f"<div class='name'>{escape(title(r))}<small>{escape(workload(r))}</small></div>"


def chart(heading: str, records: list[dict], value, form: str) -> str:
    """A bar for each measurement, on a log scale where they differ much; '' where none is known."""
    known = [value(r) for r in records if value(r)]
    if not known:
        return ""
    log = max(known) > BEYOND * min(known)
    rows = []
    for r in records:
        x = value(r)
        bar = f"<div class='bar' style='width:{width(x, known, log):.1f}%'></div>" if x else ""
        text = form.format(x) if x else "not told"
        rows.append(f"{label(r)}<div class='lane'>{bar}<span>{text}</span></div>")
    scale = "<small>log scale</small>" if log else ""
    return f"<h2>{escape(heading)} {scale}</h2><div class='chart'>{''.join(rows)}</div>"


def width(x: float, known: list[float], log: bool) -> float:
    """Percent of a lane; 80 for the largest, so that its number has room."""
    if not log:
        return 80 * x / max(known)
    low = math.log(min(known) / 3)
    return 80 * (math.log(x) - low) / (math.log(max(known)) - low)


def shares(records: list[dict]) -> str:
    """Where the traced time of each measurement goes."""
    by_op, order = op_shares(records)
    if not order:
        return ""
    legend = "".join(
        f"<span><i class='op{i % COLOURS}'></i>{escape(op)}</span>" for i, op in enumerate(order)
    )
    rows = []
    for r, one in zip(records, by_op, strict=True):
        parts = "".join(
            f"<div class='op{i % COLOURS}' style='width:{one[op]:.2f}%' "
            f"title='{escape(op)} {one[op]:.1f} %'>{label_of(one[op])}</div>"
            for i, op in enumerate(order)
            if op in one
        )
        rows.append(f"{label(r)}<div class='stack'>{parts or 'no trace'}</div>")
    heading = "<h2>Where the time goes, by op <small>% of what the profiler saw</small></h2>"
    return f"{heading}<div class='legend'>{legend}</div><div class='chart'>{''.join(rows)}</div>"


def label_of(percent: float) -> str:
    """The number inside a part that has room for it."""
    return f"{percent:.0f}" if percent >= 4 else ""


def numbers(records: list[dict]) -> str:
    """The table of all measurements."""
    return grid(list(COLUMNS), [[cell(r) for cell in COLUMNS.values()] for r in records])


def details(r: dict) -> str:
    """A measurement's passes against its ceilings."""
    heading = f"{escape(title(r))}: {escape(workload(r))}"
    return f"<details><summary>{heading}</summary>{grid(*breakdown(r))}</details>"


def grid(heads: list[str], body: list[list[str]]) -> str:
    def row(tag, cells):
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    rows = "".join(row("td", cells) for cells in body)
    return f"<div class='scroll'><table>{row('th', heads)}{rows}</table></div>"
