"""Checkpoints of a run, with orbax: one folder a step, each whole or not there.

A checkpoint holds the training state in its global form, whatever the devices were, and beside
it a JSON object `run`: the configuration, the loader's position, versions.
"""

from pathlib import Path

import jax
import orbax.checkpoint as ocp

from llmc_jax.models.gpt2 import Params
from llmc_jax.training.step import TrainState

STEP_DIGITS = 8


class Checkpointer:
    """Saves and restores the checkpoints in one folder; a context that ends with all on disk."""

    def __init__(self, folder: Path):
        self._folder = folder
        options = ocp.CheckpointManagerOptions(
            step_format_fixed_length=STEP_DIGITS,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(
            folder.absolute(), options=options, item_names=("state", "run")
        )

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, None if there is none."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def path(self, step: int) -> Path:
        """The folder of the checkpoint of `step`."""
        return self._folder / f"{step:0{STEP_DIGITS}d}"

    def save(self, state: TrainState, run: dict, step: int) -> None:
        """Write a checkpoint. Returns once the state is copied; writing goes on meanwhile."""
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run)),
        )

    def restore_run(self, step: int) -> dict:
        """The JSON object saved with the checkpoint of `step`."""
        return self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore())).run

    def restore_state(self, step: int, like: TrainState) -> TrainState:
        """The state of `step`, placed as the shapes and shardings of `like` say."""
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
        return self._manager.restore(step, args=args).state

    def restore_params(self, step: int, like: Params) -> Params:
        """Only the parameters of `step`; the moments stay on disk."""
        places = jax.tree.map(lambda x: ocp.ArrayRestoreArgs(sharding=x.sharding), like)
        part = ocp.args.PyTreeRestore(
            dict(params=like), restore_args=dict(params=places), partial_restore=True
        )
        return self._manager.restore(step, args=ocp.args.Composite(state=part)).state["params"]

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_) -> None:
        """Wait until everything saved is on disk."""
        self._manager.close()
