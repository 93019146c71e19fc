"""main.log in llm.c's line format (llmc/logger.h), and metrics.jsonl, a JSON object a line.

Whoever else wants the numbers (trackers.py) gets them from here.
"""

from collections.abc import Callable
from pathlib import Path

from llmc_jax.config import BadInput, RunStopped
from llmc_jax.files import new_file
from llmc_jax.training import processes
from llmc_jax.training.log_lines import json_line, logged_before, read_lines
from llmc_jax.training.run_dir import RunDir
from llmc_jax.training.step import Metrics


class Logger:
    """Appends to the two logs; with no run directory it does nothing. A context that closes the
    trackers, and at whose end the logs have all lines or it is said how many they lack."""

    def __init__(self, run: RunDir | None, start: int, trackers=(), *, loop_done: bool = True):
        """start: the step the run begins at; lines of later steps, left by a run that died after
        its last checkpoint, are taken out, and unless `loop_done` those of what is done before
        that step, which is done again. A line that cannot be written is kept until it can.
        trackers: get the objects of metrics.jsonl too; one that fails gets no more."""
        self._run, self._trackers = run, list(trackers)
        self._unwritten = {run.main_log: "", run.metrics: ""} if run else {}
        self.problem = ""  # why lines are kept
        if run:
            _cut(run.main_log, start, loop_done)
            _cut(run.metrics, start, loop_done)

    def train(
        self,
        step: int,
        metrics: Metrics,
        step_time_s: float,
        data_wait_s: float,
        step_tokens: int,
    ) -> None:
        """Log update number `step` (0-based); metrics as Python floats.

        data_wait_s: the part of the time in which the loop waited for a batch: the next step's,
        and where nothing was under way before, the step's own.
        """
        skipped = dict(skipped=True) if metrics.skipped else {}
        self._write(
            f"s:{step} trl:{metrics.loss:.4f} lr:{metrics.learning_rate:.6f} "
            f"norm:{metrics.grad_norm:.2f}",
            step=step,
            train_loss=metrics.loss,
            grad_norm=metrics.grad_norm,
            learning_rate=metrics.learning_rate,
            step_time_s=step_time_s,
            data_wait_s=data_wait_s,
            tokens_per_s=step_tokens / step_time_s,
            tokens=(step + 1) * step_tokens,
            **skipped,
        )

    def val(self, step: int, loss: float, step_tokens: int) -> None:
        """Log a validation made after `step` updates."""
        self._write(f"s:{step} tel:{loss:.4f}", step=step, val_loss=loss, tokens=step * step_tokens)

    def hellaswag(self, step: int, acc: float, acc_norm: float, step_tokens: int) -> None:
        """Log the questions answered rightly after `step` updates, as fractions."""
        self._write(
            f"s:{step} eval:{acc_norm:.4f}",
            step=step,
            hellaswag_acc=acc,
            hellaswag_acc_norm=acc_norm,
            tokens=step * step_tokens,
        )

    def _write(self, line: str, **metrics) -> None:
        if self._run:
            self._unwritten[self._run.main_log] += line + "\n"
            self._unwritten[self._run.metrics] += json_line(metrics)
            self.flush()
        self._each_tracker(lambda tracker: tracker.write(metrics))

    def _each_tracker(self, act: Callable) -> None:
        for tracker in list(self._trackers):
            try:
                act(tracker)
            except Exception as error:  # whatever it is, the run goes on without it
                self._trackers.remove(tracker)
                print(f"no more goes to {type(tracker).__name__}: {type(error).__name__}: {error}")

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, kind, *_) -> None:
        """Raises RunStopped in all processes where lines are lost, but behind no other error."""
        self._each_tracker(lambda tracker: tracker.close())
        self.flush()
        if kind:
            if self.problem:
                print(f"WARNING: {self._lost()}")
            return
        with processes.all_or_none():
            if self.problem:
                raise RunStopped(f"{self._lost()} The training is as it should be.")

    def flush(self) -> None:
        """Write what is kept. What goes wrong is the new `problem`."""
        self.problem = ""
        for path, lines in self._unwritten.items():
            try:
                _append(path, lines)
                self._unwritten[path] = ""
            except OSError as error:
                self.problem = f"{path} cannot be written: {error.strerror}"

    def _lost(self) -> str:
        counts = {path.name: lines.count("\n") for path, lines in self._unwritten.items()}
        lost = " and ".join(f"{count} lines of {name}" for name, count in counts.items() if count)
        return f"{self.problem}; the last {lost} are lost."


def read_metrics(path: Path) -> list[dict]:
    """The objects of a metrics.jsonl, but for damaged lines; none where it does not exist."""
    return [line.metrics for line in read_lines(path)[0]]


def _append(path: Path, lines: str) -> None:
    """Add lines to a file, all or none of them."""
    with open(path, "ab", buffering=0) as file:
        size = file.tell()
        data = lines.encode()
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(size)
            raise


def _cut(path: Path, start: int, loop_done: bool) -> None:
    """Keep the lines that were written before step `start` began, but for damaged ones. Raises
    RunStopped where they cannot be read or written."""
    if not path.exists():
        return
    try:
        lines, damaged = read_lines(path)
    except OSError as error:
        raise RunStopped(
            f"{path} cannot be read: {error.strerror}; mend that or move it away, and give the "
            f"same command again."
        ) from error
    if damaged:
        print(f"WARNING: {path}: {len(damaged)} damaged lines were dropped")
    kept = [line.text for line in lines if logged_before(line.metrics, start, loop_done)]
    if len(kept) == len(lines) and not damaged:
        return
    try:
        with new_file(path, overwrite=True) as file:  # so that a kill just now costs no line
            file.write("".join(kept).encode())
    except BadInput as error:  # a disk that is full: the flags are those of a run that went well
        raise RunStopped(
            f"the lines from step {start} on cannot be taken out of a log: {error} Mend that, and "
            f"give the same command again."
        ) from error
