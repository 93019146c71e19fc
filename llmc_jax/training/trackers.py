"""The numbers of a run for TensorBoard and Weights & Biases, beside our own logs.

Both libraries are optional and are imported only where a flag asks for them. In both, a step is the
number of updates made, so that training and validation losses of one moment meet: training update
number s (0-based) is at s + 1.
"""

import dataclasses
import importlib.util
import json
import secrets
from pathlib import Path
from typing import Protocol

from llmc_jax.config import BadInput, TrainConfig
from llmc_jax.files import new_file
from llmc_jax.training.log_lines import logged_before, updates
from llmc_jax.training.logger import read_metrics
from llmc_jax.training.run_dir import RunDir

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # flag, and extra of ours -> package
WAIT_S = 30  # for Weights & Biases' servers, at the start and at the end
FLUSH_S = 10


class Tracker(Protocol):
    """What a Logger hands its numbers on to."""

    def write(self, metrics: dict) -> None:
        """Take what metrics.jsonl gets."""

    def close(self) -> None:
        """Bring what was taken to where it belongs."""


def require_trackers(cfg: TrainConfig) -> None:
    """Raises BadInput where a tracker that is asked for cannot be: before anything is written."""
    for flag, package in PACKAGES.items():
        if not getattr(cfg, flag):
            continue
        if not cfg.output_dir:
            raise BadInput(f"--{flag} needs --output_dir, where its files are kept.")
        if not importlib.util.find_spec(package):
            raise BadInput(f"--{flag} needs the package {package}: pip install -e .[{flag}]")


def open_trackers(
    cfg: TrainConfig, run: RunDir | None, start: int, *, loop_done: bool
) -> list[Tracker]:
    """The trackers that the flags ask for, of a run that begins after `start` updates; one that
    fails is left out, and said.

    run: None in a process that writes nothing; it has none. loop_done: as the Logger's.
    """
    trackers = []
    if run is None:
        return trackers
    makers = dict(
        tensorboard=lambda: TensorBoard(run, start, loop_done=loop_done),
        wandb=lambda: WeightsAndBiases(run, dataclasses.asdict(cfg)),
    )
    for flag, make in makers.items():
        try:
            if getattr(cfg, flag):
                trackers.append(make())
        except Exception as error:  # whatever it is, the run goes on without it
            print(f"--{flag} gets nothing: {type(error).__name__}: {error}")
    return trackers


def numbers(metrics: dict) -> dict[str, float]:
    """What there is to draw in an object of metrics.jsonl."""
    return {name: float(value) for name, value in metrics.items() if name != "step"}


class TensorBoard:
    """Event files in the run's folder tensorboard."""

    def __init__(self, run: RunDir, start: int, *, loop_done: bool):
        from tensorboardX import SummaryWriter

        # What a run that died wrote after its last checkpoint, TensorBoard then drops.
        purge = start + loop_done
        # Files are named after the second, and read in the order of their names.
        number = f".{len(list(run.tensorboard.glob('*'))):04}"
        where = dict(logdir=str(run.tensorboard), filename_suffix=number)
        self._writer = SummaryWriter(**where, purge_step=purge, flush_secs=FLUSH_S)
        for metrics in read_metrics(run.metrics):
            # The last update is at the same place as a validation that is made again.
            if updates(metrics) == purge and logged_before(metrics, start, loop_done):
                self.write(metrics)

    def write(self, metrics: dict) -> None:
        """Add each number under its name in metrics.jsonl."""
        for name, value in numbers(metrics).items():
            self._writer.add_scalar(name, value, updates(metrics))

    def close(self) -> None:
        """Write what has not been."""
        self._writer.close()


class WeightsAndBiases:
    """One run at Weights & Biases for all starts; without a network it is kept in the folder."""

    def __init__(self, run: RunDir, options: dict):
        import wandb

        known = run.root / "wandb.json"
        # It cannot go back: what it has of a run that died it keeps, and is not sent again.
        again = known.exists()
        self._sent = set(map(_identity, read_metrics(run.metrics))) if again else set()
        name = json.loads(known.read_text())["id"] if again else secrets.token_hex(4)
        quiet = wandb.Settings(init_timeout=WAIT_S, finish_timeout=WAIT_S, console="off")
        about = dict(id=name, dir=str(run.root), config=options, settings=quiet)
        about |= dict(name=run.root.resolve().name, resume="allow")
        try:
            self._run = wandb.init(**about)
        except wandb.Error as error:
            self._run = wandb.init(**about, mode="offline")
            print(
                f"--wandb: {str(error).splitlines()[0]} The run goes on; later, wandb sync "
                f"{Path(self._run.dir).parent} sends what is kept there."
            )
        with new_file(known, overwrite=True) as file:
            file.write(json.dumps(dict(id=name)).encode())

    def write(self, metrics: dict) -> None:
        """Log the numbers under their names in metrics.jsonl."""
        if _identity(metrics) not in self._sent:
            self._run.log(numbers(metrics), step=updates(metrics))

    def close(self) -> None:
        """Wait for what is under way, at most WAIT_S."""
        self._run.finish()


def _identity(metrics: dict) -> tuple:
    """Which line of metrics.jsonl an object is."""
    return updates(metrics), *sorted(metrics)
