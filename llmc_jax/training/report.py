"""Reads each step's metrics while the next step runs, and hands them to log and screen."""

import math
import time

import jax

from llmc_jax.training.logger import Logger
from llmc_jax.training.progress import Progress
from llmc_jax.training.step import Metrics


class Report:
    """Keeps the metrics of the last step dispatched until the one after it is under way."""

    def __init__(self, logger: Logger, progress: Progress, step_tokens: int):
        self._logger, self._progress, self._step_tokens = logger, progress, step_tokens
        self._pending = None
        self._clock, self._waited = time.perf_counter(), 0.0  # the second counts from the first
        self._log_problem = ""
        self.skipped = 0  # steps so far
        self.bad_in_a_row = 0  # the last steps whose loss or gradient norm was not finite

    def dispatched(self, step: int, metrics: Metrics, data_wait_s: float) -> None:
        """Update number `step` is under way, after a wait for its batch; report the one before."""
        before, self._pending = self._pending, (step, metrics)
        self._waited += data_wait_s
        if before:
            self._report(*before)

    def catch_up(self) -> None:
        """Wait for the last step dispatched and report it."""
        if self._pending:
            self._report(*self._pending)
            self._pending = None

    def restart_clock(self) -> None:
        """What was done since the last report (validation, saving) is not the next step's time."""
        self._clock = time.perf_counter()

    def _report(self, step: int, metrics: Metrics) -> None:
        metrics = Metrics(*(float(value) for value in jax.device_get(metrics)))
        now = time.perf_counter()
        elapsed, self._clock = now - self._clock, now
        waited, self._waited = self._waited, 0.0
        finite = math.isfinite(metrics.loss) and math.isfinite(metrics.grad_norm)
        self.bad_in_a_row = 0 if finite else self.bad_in_a_row + 1
        self._logger.train(step, metrics, elapsed, waited, self._step_tokens)
        self._progress.step(step, metrics, elapsed, self._step_tokens)
        if metrics.skipped:
            self.skipped += 1
            self._progress.message(_skipped(step, metrics))
        if self._logger.problem and not self._log_problem:
            self._progress.message(f"{self._logger.problem}; its lines are kept until it can be")
        self._log_problem = self._logger.problem


def _skipped(step: int, metrics: Metrics) -> str:
    return (
        f"step {step + 1:4d} skipped: loss {metrics.loss:.6f} ({metrics.loss_zscore:+.2f}z), "
        f"norm {metrics.grad_norm:.4f} ({metrics.grad_zscore:+.2f}z)"
    )
