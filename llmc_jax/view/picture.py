"""Curves of runs as a picture (PNG)."""

import math
from pathlib import Path

import matplotlib

from llmc_jax import fonts
from llmc_jax.files import new_file
from llmc_jax.view.curves import Run, smooth
from llmc_jax.view.levels import Level
from llmc_jax.view.panels import NOISY, SPARSE, Panel

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COLUMNS = 3  # at most, below the first panel, which is as wide as all
FIRST_INCHES, MORE_INCHES = (8, 4.8), (1.5, 2.8)  # more: wider for a column, higher for a row


def save_picture(
    runs: list[Run], path: Path, panels: list[Panel], levels: tuple[Level, ...] = ()
) -> None:
    """Draw `panels` of the runs over each other; the file appears whole or not at all. Raises
    BadInput where it cannot be written."""
    with fonts.drawn([run.name for run in runs]):
        _save(runs, path, panels, levels)


def _save(runs: list[Run], path: Path, panels: list[Panel], levels: tuple[Level, ...]) -> None:
    columns = max(1, min(COLUMNS, len(panels) - 1))
    rows = math.ceil((len(panels) - 1) / columns)
    (width, height), (wider, higher) = FIRST_INCHES, MORE_INCHES
    size = width + wider * (columns - 1), height + higher * rows
    figure = plt.figure(figsize=size, dpi=120)
    grid = figure.add_gridspec(1 + rows, columns, height_ratios=[height] + [higher] * rows)
    for number, panel in enumerate(panels):
        row, column = divmod(number - 1, columns)
        place = grid[0, :] if number == 0 else grid[row + 1, column]
        _draw(figure.add_subplot(place), panel, runs, levels)
    figure.tight_layout()
    try:
        with new_file(path, overwrite=True) as file:
            figure.savefig(file, format="png")
    finally:
        plt.close(figure)


def _draw(axes, panel: Panel, runs: list[Run], levels: tuple[Level, ...]) -> None:
    for number, run in enumerate(runs):
        color = f"C{number % 10}"
        for name in panel.curves:
            if name in run.curves:
                # Behind a space, or what begins with _ would be left out of the legend.
                label = " " * run.name.startswith("_") + run.name
                label += f", {name.split('_')[0]}" if len(panel.curves) > 1 else ""
                _draw_curve(axes, run, name, color, label)
    for level in levels:
        if level.curve in panel.curves:
            axes.axhline(level.value, color="gray", ls=":", lw=1)
            axes.text(
                0.99, level.value, level.label, color="gray", fontsize=8, ha="right", va="bottom",
                transform=axes.get_yaxis_transform(),
            )  # fmt: skip
    axes.set(xlabel="step", title=panel.title)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        for text in axes.legend(fontsize=8).get_texts():
            text.set_parse_math(False)  # a run may be called a$b$


def _draw_curve(axes, run: Run, name: str, color: str, label: str) -> None:
    curve = run.curves[name]
    if name in SPARSE:
        label = f"{label} {curve.values[-1]:.4g} at the end"
        axes.plot(*curve, color=color, marker="o", ms=3, lw=1, label=label)
    elif name in NOISY:
        axes.plot(*curve, color=color, alpha=0.3, lw=1)
        axes.plot(*smooth(curve), color=color, lw=1.5, label=label)
    else:
        axes.plot(*curve, color=color, label=label)
