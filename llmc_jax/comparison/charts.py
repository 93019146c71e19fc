"""The measurements as one picture (PNG): speed, use of the device, memory, and time by op."""

import io
from collections import Counter

import matplotlib

from llmc_jax import fonts
from llmc_jax.comparison.table import GIB, passes, title, workload

matplotlib.use("Agg")
from matplotlib import pyplot as plt

BEYOND = 20  # a log scale where values differ by more than this factor


def picture(records: list[dict]) -> bytes:
    """The PNG."""
    names = [f"{title(r)}\n{workload(r)}" for r in records]
    with fonts.drawn([*names, *(name for r in records for name in r["passes"])]):
        return _picture(records, names)


def _picture(records: list[dict], names: list[str]) -> bytes:
    height = 1.8 + 0.52 * len(records)
    figure, axes = plt.subplots(2, 2, figsize=(14, 2 * height), dpi=80)
    bars(axes[0, 0], names, [r["tokens_per_s"] for r in records], "tokens/s", "{:,.0f}")
    mfu = [100 * r["mfu"]["llm.c"] for r in records]
    bars(axes[0, 1], None, mfu, "MFU, % of the peak (llm.c's count)", "{:.1f} %")
    memory = [(r["memory_bytes"] or 0) / GIB for r in records]
    bars(axes[1, 0], names, memory, "peak memory, GiB", "{:.2f}")
    shares(axes[1, 1], records)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()


def bars(axes, names: list[str] | None, values: list[float], label: str, form: str) -> None:
    """A bar for each measurement, the first on top; 0: not known."""
    places = range(len(values))
    axes.barh(places, values, color="tab:blue", height=0.6)
    labels = names if names else [""] * len(values)
    axes.set_yticks(places, labels, fontsize=8, parse_math=False)  # a device may be called a$b$
    axes.invert_yaxis()
    known = [value for value in values if value] or [1]
    if max(known) > BEYOND * min(known):
        axes.set_xscale("log")
        axes.set_xlim(min(known) / 3, max(known) * 4)
    else:
        axes.set_xlim(0, max(known) * 1.18)
    for place, value in zip(places, values, strict=True):
        text = form.format(value) if value else "not told"
        axes.annotate(
            text, (value or axes.get_xlim()[0], place), xytext=(4, 0),
            textcoords="offset points", va="center", fontsize=8,
        )  # fmt: skip
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def shares(axes, records: list[dict]) -> None:
    """Of each measurement's traced time, the share of each op, both ways together."""
    by_op, order = op_shares(records)
    colours = plt.get_cmap("tab20").colors
    left = [0.0] * len(records)
    for i, op in enumerate(order):
        widths = [one[op] for one in by_op]
        axes.barh(
            range(len(records)), widths, left=left, height=0.6, label=op, color=colours[i % 20]
        )
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(records)), [""] * len(records))
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("traced time by op, %")
    axes.spines[["top", "right"]].set_visible(False)
    if order:
        legend = axes.legend(
            fontsize=8, ncols=4, loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False
        )
        for text in legend.get_texts():
            text.set_parse_math(False)


def op_shares(records: list[dict]) -> tuple[list[Counter], list[str]]:
    """Of each measurement, op -> percent of the traced time, if there is a trace; and all ops, the
    most expensive first."""
    by_op = [Counter() for _ in records]
    for r, sums in zip(records, by_op, strict=True):
        total = sum(ms or 0 for _, ms, _ in passes(r))
        for name, ms, _ in passes(r):
            if ms:
                sums[name.partition(".")[0]] += 100 * ms / total
    return by_op, [op for op, _ in sum(by_op, Counter()).most_common()]
