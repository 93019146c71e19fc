"""main.log in llm.c's line format (llmc/logger.h), and metrics.jsonl, a JSON object a line."""

import json
from collections.abc import Callable
from pathlib import Path

from llmc_jax.training.run_dir import RunDir
from llmc_jax.training.step import Metrics


class Logger:
    """Appends to the two logs; with no run directory it does nothing."""

    def __init__(self, run: RunDir | None, start: int):
        """start: the step the run begins at; lines of later steps, left by a run that died after
        its last checkpoint, are taken out."""
        self._run = run
        if run:
            _cut(run.main_log, _main_log_step, start)
            _cut(run.metrics, _metrics_step, start)

    def train(self, step: int, metrics: Metrics, step_time_s: float, step_tokens: int) -> None:
        """Log update number `step` (0-based); metrics as Python floats."""
        self._write(
            f"s:{step} trl:{metrics.loss:.4f} lr:{metrics.learning_rate:.6f} "
            f"norm:{metrics.grad_norm:.2f}",
            step=step,
            train_loss=metrics.loss,
            grad_norm=metrics.grad_norm,
            learning_rate=metrics.learning_rate,
            step_time_s=step_time_s,
            tokens_per_s=step_tokens / step_time_s,
            tokens=(step + 1) * step_tokens,
        )

    def val(self, step: int, loss: float, step_tokens: int) -> None:
        """Log a validation made after `step` updates."""
        self._write(f"s:{step} tel:{loss:.4f}", step=step, val_loss=loss, tokens=step * step_tokens)

    def _write(self, line: str, **metrics) -> None:
        if self._run:
            _append(self._run.main_log, line)
            _append(self._run.metrics, json.dumps(metrics))


def read_metrics(path: Path) -> list[dict]:
    """The objects of a metrics.jsonl; none where it does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _append(path: Path, line: str) -> None:
    with open(path, "a") as file:
        file.write(line + "\n")


def _cut(path: Path, step_of: Callable[[str], int], start: int) -> None:
    """Keep the lines that were written before step `start` began."""
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if step_of(line) < start))


def _main_log_step(line: str) -> int:
    """The update a line belongs to: validation at step s comes before update s."""
    step = int(line.split()[0].removeprefix("s:"))
    return step - 1 if "tel:" in line else step


def _metrics_step(line: str) -> int:
    metrics = json.loads(line)
    return metrics["step"] - 1 if "val_loss" in metrics else metrics["step"]
