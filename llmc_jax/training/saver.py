"""When a checkpoint is written, and what happens where it cannot be."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from llmc_jax.config import RunStopped, TrainConfig, digest
from llmc_jax.training import processes
from llmc_jax.training.checkpoint import Checkpointer, Failure
from llmc_jax.training.run_dir import RunDir
from llmc_jax.training.step import TrainState


class Saver:
    """Decides and reports for a run that begins at step `start`."""

    def __init__(
        self,
        checkpoints: Checkpointer | None,
        cfg: TrainConfig,
        record: dict,
        start: int,
        say: Callable[[str], None],
    ):
        """checkpoints: None where nothing is saved. record: what each checkpoint says of the run
        besides its options; say: where messages go."""
        self._checkpoints, self._cfg, self._record, self._say = checkpoints, cfg, record, say
        self._start = self._last = start  # step of the newest checkpoint, which may be under way
        self._clock, self._saves = time.monotonic(), 0
        self._held_back = False  # a checkpoint is due as soon as numbers are finite again

    @property
    def newest(self) -> int | None:
        """Step of the newest checkpoint that is on disk, or the one it began at; None where nothing
        is saved, or another process does it."""
        if not self._checkpoints or not processes.first():
            return None
        return self._start if self._checkpoints.written is None else self._checkpoints.written

    def due_by_clock(self, step: int) -> int:
        """The number of the save, from 1, that --checkpoint_minutes makes due before update `step`;
        0: none is."""
        if not self._checkpoints or step == self._last or not self._cfg.checkpoint_minutes:
            return 0
        minutes = (time.monotonic() - self._clock) / 60
        return self._saves + 1 if minutes >= self._cfg.checkpoint_minutes else 0

    def due(self, step: int, by_clock: int) -> bool:
        """Whether a checkpoint is to be written before update `step`.

        by_clock: what due_by_clock said, here or in another process whose clock is ahead.
        """
        if not self._checkpoints or step == self._last or not self._cfg.saves_checkpoints:
            return False
        cfg = self._cfg
        return (
            self._held_back
            or step == cfg.max_steps
            or any(n and step % n == 0 for n in (cfg.checkpoint_every, cfg.major_checkpoint_every))
            or by_clock > self._saves
        )

    def save(self, state: TrainState, step: int, bad_steps: int, *, loop_done: bool = True) -> None:
        """Save, unless the last `bad_steps` steps were not finite: not over the last good one.

        loop_done: what else is due at `step` has been done.
        """
        if bad_steps and not self._held_back:
            self._say(f"no checkpoint at step {step}: the numbers of the last step are not finite")
        self._held_back = bad_steps > 0
        if self._held_back:
            return
        tokens = step * self._cfg.total_batch_size
        here = dict(
            config=dataclasses.asdict(self._cfg),
            digest=digest(self._cfg, self._record),
            step=step,
            tokens=tokens,
            loader=dict(position=tokens // self._cfg.sequence_length),
            loop_done=loop_done,
        )
        self._checkpoints.wait()
        self.report_failure()  # of the save before: the one after the last is finish()'s to report
        self._checkpoints.save(state, self._record | here, step)
        self._last, self._clock = step, time.monotonic()
        self._saves += 1

    def stop(self, state: TrainState, step: int, *, loop_done: bool = False, use: str = "") -> str:
        """Save what ends after update `step`, whose numbers are good; what can be done next, in
        words. loop_done: as in save. use: what can be done with the checkpoint, where it is
        anything but a resume. Raises RunStopped where it cannot be saved."""
        if not self._checkpoints:
            return "nothing is saved, because there is no --output_dir"
        if step != self._last:
            self.save(state, step, 0, loop_done=loop_done)
        self.finish()
        saved = self._checkpoints.newest()
        if saved is None:
            # A validation may have been logged: then a start without --resume is refused.
            held = RunDir(Path(self._cfg.output_dir)).holds_a_run()
            flag = " with --resume" if held else ""
            return f"no step was finished, so nothing is saved; the same command{flag} starts again"
        use = use or f"the same command with {self._cfg.to_go_on} goes on"
        return f"checkpoint of step {saved} saved; {use}"

    def report_failure(self) -> None:
        """Say what went wrong with writing, if anything did since this was last asked."""
        if failure := self._checkpoints and self._checkpoints.take_failure():
            step = self._checkpoints.newest()
            whole = "there is no other yet" if step is None else _whole(step)
            again = "saving is tried again at the next one"
            self._say(f"WARNING: {_failed(failure)}; {whole}; {again}")

    def finish(self) -> None:
        """Wait until all is on disk. Raises RunStopped where the last checkpoint is not: in all
        processes, as one that ends alone takes the others with it before they can say why."""
        if not self._checkpoints:
            return
        with processes.all_or_none():
            self._checkpoints.wait()
            if failure := self._checkpoints.take_failure():
                step = self._checkpoints.newest()
                left = "there is no other: all steps are lost, --resume starts from the beginning"
                if step is not None:
                    left = (
                        f"{_whole(step)}; saving can be tried again with {self._cfg.to_go_on}: "
                        f"the steps after that one are repeated"
                    )
                raise RunStopped(f"{_failed(failure)}; {left}.")


def _failed(failure: Failure) -> str:
    return f"the checkpoint of step {failure.step} could not be written: {failure.reason}"


def _whole(step: int) -> str:
    return f"the newest whole one is of step {step}"
