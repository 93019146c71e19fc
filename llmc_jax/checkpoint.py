"""List, verify and remove a run's checkpoints.

python -m llmc_jax.checkpoint ls --run=runs/quickstart       which there are, and of what
python -m llmc_jax.checkpoint verify --run=runs/quickstart   read every byte of them
python -m llmc_jax.checkpoint rm --run=runs/quickstart --step=500
python -m llmc_jax.checkpoint rm --run=runs/quickstart --keep=3 --set_aside
"""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from llmc_jax import program
from llmc_jax.config import BadInput, not_saved, option
from llmc_jax.lock import locked
from llmc_jax.training.checkpoint import RUN, STEP_DIGITS, Checkpointer
from llmc_jax.training.run_dir import find_checkpoints

COMMANDS = ("ls", "verify", "rm")
# As a resume names what it puts aside; a copy that the user has made has another name.
SET_ASIDE = re.compile(rf"\d{{{STEP_DIGITS}}}\.(broken|later)\d*")


@dataclass(frozen=True)
class CheckpointConfig:
    """Which checkpoints."""

    run: str = option("", "directory of a run (the --output_dir of its training)", path=True)
    step: int = option(-1, "only the checkpoint of this step; -1: all", minimum=-1)
    keep: int = option(-1, "rm: all but the newest N that are complete", minimum=-1)
    set_aside: bool = option(
        False, "rm: what a resume put aside (.broken: damaged, .later: gone back behind)"
    )


def main(command: str, cfg: CheckpointConfig) -> int:
    """Do what `command` says; exit status 1 where verify finds a checkpoint that is not whole."""
    if not cfg.run:
        raise BadInput("--run is needed: the --output_dir of a training run.")
    if command != "rm" and (cfg.keep != -1 or cfg.set_aside):
        raise BadInput(f"--keep and --set_aside are for rm; {command} removes nothing.")
    folder = find_checkpoints(cfg.run)
    if cfg.keep == 0:  # in training, --keep_checkpoints=0 keeps all
        raise BadInput(f"--keep=0 would leave none; if that is meant, remove {folder}.")
    checkpoints = Checkpointer(folder)
    steps = checkpoints.all_steps()
    if cfg.step != -1 and cfg.step not in steps:
        raise not_saved("step", cfg.step, cfg.run, steps)
    if command == "rm":
        with locked(Path(cfg.run), "run"):
            return remove(checkpoints, folder, cfg)
    chosen = steps if cfg.step == -1 else [cfg.step]
    return show(checkpoints, folder, chosen, contents=command == "verify")


def show(checkpoints: Checkpointer, folder: Path, steps: list[int], *, contents: bool) -> int:
    """A line for each checkpoint; contents: every byte is read. 1 where one is not whole."""
    broken = 0
    for step in steps:
        path = checkpoints.path(step)
        problem = checkpoints.problem(step, contents=contents)
        origin = "" if problem else _origin(path)
        if not problem and not origin:
            problem = f"{RUN} is damaged"
        broken += bool(problem)
        state = problem or ("whole" if contents else "complete")
        print(f"{path.name}  {_size(path) / 2**20:9.1f} MiB  {origin}{state}")
    for path in _set_aside(folder):
        print(f"{path.name}  set aside")
    return int(contents and broken > 0)


def remove(checkpoints: Checkpointer, folder: Path, cfg: CheckpointConfig) -> int:
    """Remove what the flags name, and say so."""
    one, all_but = cfg.step != -1, cfg.keep != -1
    if not (one or all_but or cfg.set_aside) or (one and all_but):
        raise BadInput("rm needs --step=N or --keep=N, or --set_aside.")
    doomed = [cfg.step] if one else []
    if all_but:
        complete = checkpoints.steps()
        doomed = complete[: max(0, len(complete) - cfg.keep)]
    for step in doomed:
        checkpoints.remove(step)
        print(f"removed {checkpoints.path(step)}")
    for path in _set_aside(folder) if cfg.set_aside else []:
        shutil.rmtree(path)
        print(f"removed {path}")
    return 0


def _origin(path: Path) -> str:
    """The run a checkpoint is of: its model, its options' digest, the program's revision; '' where
    its file does not say so."""
    try:
        run = json.loads((path / RUN).read_text())
        revision = run.get("made_with", {}).get("revision", "unknown")
        model = run["config"].get("model") or "L {L} C {C}".format(**run["model"])
        return f"{model}  run {run.get('digest', 'exported')}  at {revision}  "
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""


def _size(path: Path) -> int:
    """Bytes of a folder's files; 0 where a run is just removing it."""
    try:
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    except FileNotFoundError:
        return 0


def _set_aside(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if SET_ASIDE.fullmatch(path.name) and path.is_dir()
    )


if __name__ == "__main__":
    program.run(main, CheckpointConfig, COMMANDS)
