"""Curves of runs as one HTML file that needs nothing else: no network, no other file.

page.html draws in the browser what is put into it here as JSON.
"""

import json
import math
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

import numpy as np

from llmc_jax.files import new_file
from llmc_jax.view.curves import Curve, Run, smooth, thin
from llmc_jax.view.levels import Level
from llmc_jax.view.panels import NOISY, SPARSE, panels_of

BUCKETS = 600  # stretches of steps of which the page has the extremes: two pixels of its width
SMOOTH_POINTS = 200
COLUMNS = ("steps", "training loss", "validation loss", "lowest", "tokens/s")


def save_page(runs: list[Run], path: Path, levels: tuple[Level, ...] = ()) -> None:
    """Write the page; the file appears whole or not at all. Raises BadInput where it cannot."""
    template = (resources.files("llmc_jax.view") / "page.html").read_text()
    data = dict(
        runs=[_run(run) for run in runs],
        panels=[panel._asdict() for panel in panels_of(runs)],
        levels=[level._asdict() for level in levels],
        columns=COLUMNS,
    )
    # A name with "</script>" in it must not end the script.
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    with new_file(path, overwrite=True) as file:
        file.write(template.replace("{{DATA}}", text).encode())


def _run(run: Run) -> dict:
    curves = {}
    for name, curve in run.curves.items():
        curves[name] = _points(thin(curve, BUCKETS))
        if name in NOISY:
            curves[name]["smooth"] = _points(_sampled(smooth(curve), SMOOTH_POINTS))
        if name in SPARSE:
            curves[name]["sparse"] = True
    return dict(name=run.name, curves=curves, summary=_summary(run))


def _summary(run: Run) -> list[float | None]:
    """The numbers of COLUMNS: of training the mean of the last twentieth, of speed the median."""

    def of(name: str, number) -> float | None:
        curve = run.curves.get(name)
        values = curve.values[np.isfinite(curve.values)] if curve else ()
        return float(number(values)) if len(values) else None

    return [
        max(int(curve.steps[-1]) for curve in run.curves.values()),
        of("train_loss", lambda values: values[-max(1, len(values) // 20) :].mean()),
        of("val_loss", lambda values: values[-1]),
        of("val_loss", min),
        of("tokens_per_s", np.median),
    ]


def _sampled(curve: Curve, count: int) -> Curve:
    """About `count` points of a smooth curve, the last among them."""
    every = math.ceil(len(curve.steps) / count) or 1
    return Curve(*(numbers[::-1][::every][::-1] for numbers in curve))


def _points(curve: Curve) -> dict:
    return dict(steps=_numbers(curve.steps), values=_numbers(curve.values))


def _numbers(values: Iterable[float]) -> list[float | None]:
    """Six digits of each number; None where it is not finite, which JSON cannot say."""
    return [
        (int(v) if float(v).is_integer() else float(f"{v:.6g}")) if np.isfinite(v) else None
        for v in values
    ]
