"""Reads each step's metrics while the next step runs, and hands them to log and screen."""

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
        self._clock = time.perf_counter()

    def dispatched(self, step: int, metrics: Metrics) -> None:
        """Update number `step` is under way; report the one before."""
        before, self._pending = self._pending, (step, metrics)
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
        self._logger.train(step, metrics, elapsed, self._step_tokens)
        self._progress.step(step, metrics, elapsed, self._step_tokens)
