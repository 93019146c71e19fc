"""What a run has logged, as curves: from our metrics.jsonl, or from llm.c's main.log.

Steps are counted in updates made: training update number s (0-based, as the logs have it) is at
s + 1, and a validation after s updates is at s.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from llmc_jax.config import BadInput
from llmc_jax.training.log_lines import read_lines, updates
from llmc_jax.training.run_dir import RunDir

# What the logs call a curve, and what it is called here.
CURVES = {
    "train_loss": "train_loss",
    "val_loss": "val_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "tokens_per_s": "tokens_per_s",
    "hellaswag_acc_norm": "hellaswag",
}
SMOOTH_PARTS = 20  # a smoothed curve is means over windows of a twentieth of it
REMARKS = 3  # so many lines left out are named one by one


class Curve(NamedTuple):
    """Numbers over the updates made."""

    steps: np.ndarray  # (n,) int64, increasing
    values: np.ndarray  # (n,) float64; not finite where the run's was not


class Run(NamedTuple):
    """A run as it is drawn."""

    name: str
    curves: dict[str, Curve]  # only those that have a point
    remarks: list[str]  # lines that were left out, as sentences


def read_runs(paths: list[str]) -> list[Run]:
    """The runs that `paths` name, each once, with different names. Raises BadInput where one has no
    step."""
    first_names: dict[Path, str] = {}
    for path in paths:
        first_names.setdefault(_find_log(Path(path)).resolve(), path)
    paths = list(first_names.values())
    runs = [read_run(Path(path)) for path in paths]
    for path, run in zip(paths, runs, strict=True):
        if not run.curves:
            but = f" ({'; '.join(run.remarks)})" if run.remarks else ""
            raise BadInput(
                f"{path}: no step has been logged there yet{but}; wait for the first, or name "
                f"another run."
            )
    names = [run.name for run in runs]
    return [
        run if names.count(run.name) == 1 else run._replace(name=path)
        for path, run in zip(paths, runs, strict=True)
    ]


def read_run(path: Path) -> Run:
    """The run of a directory (its metrics.jsonl, or else main.log) or of one such file.

    Of a step that is there twice, the later line counts: llm.c appends when it resumes. A line
    that cannot be read, cut short perhaps, is left out and named. Raises BadInput where there is
    no log.
    """
    log = _find_log(path)
    try:
        lines, damaged = read_lines(log)
    except OSError as error:
        raise BadInput(f"{log} cannot be read: {error.strerror}.") from error
    points: dict[str, dict[int, float]] = {}
    for _, metrics in lines:
        for name, value in metrics.items():
            if name in CURVES:
                points.setdefault(CURVES[name], {})[updates(metrics)] = float(value)
    root = path if path.is_dir() else log.parent
    name = root.resolve().name if log.stem in ("metrics", "main") else log.stem
    curves = {curve: _curve(found) for curve, found in points.items()}
    return Run(name, curves, _remarks(log, damaged))


def smooth(curve: Curve) -> Curve:
    """Means over windows of a twentieth of the finite points, each in its window's middle (so a
    step may have a fraction)."""
    finite = np.isfinite(curve.values)
    if not finite.any():
        return Curve(curve.steps[:0], curve.values[:0])
    width = max(1, finite.sum() // SMOOTH_PARTS)
    mean = np.ones(width) / width
    return Curve(*(np.convolve(numbers[finite], mean, "valid") for numbers in curve))


def thin(curve: Curve, buckets: int) -> Curve:
    """Points of `curve` that look the same where it is drawn `buckets` pixels wide: of the steps
    of each pixel the first, the lowest, the highest and the last."""
    if len(curve.steps) <= 4 * buckets:
        return curve
    first, last = curve.steps[0], curve.steps[-1]
    bucket = np.floor((curve.steps - first) * buckets / (last - first + 1))
    starts = np.flatnonzero(np.diff(bucket, prepend=-1))
    kept = set()
    for start, end in zip(starts, [*starts[1:], len(bucket)], strict=True):
        # Infinity and NaN are higher than anything: so a bad step stays to be seen.
        order = np.argsort(curve.values[start:end])
        kept |= {start, start + order[0], start + order[-1], end - 1}
    index = np.array(sorted(kept))
    return Curve(curve.steps[index], curve.values[index])


def _find_log(path: Path) -> Path:
    """The log file that `path` is, or has in it."""
    if path.is_file():
        return path
    run = RunDir(path)
    for log in (run.metrics, run.main_log):
        if log.is_file():
            return log
    raise BadInput(
        f"{path} is neither a run's directory (with metrics.jsonl or main.log) nor a log file; "
        f"name the --output_dir of a training, or llm.c's."
    )


def _curve(points: dict[int, float]) -> Curve:
    steps = sorted(points)
    return Curve(np.array(steps, np.int64), np.array([points[step] for step in steps]))


def _remarks(log: Path, damaged: list[int]) -> list[str]:
    """A sentence for each of the first lines that were left out, and one for the rest."""
    remarks = [f"{log}: line {number} is not whole; left out" for number in damaged[:REMARKS]]
    if len(damaged) > REMARKS:
        remarks.append(f"{log}: {len(damaged) - REMARKS} more lines are not whole; left out")
    return remarks
