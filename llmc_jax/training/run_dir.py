"""The files of a run in --output_dir, and who may write there."""

from pathlib import Path
from typing import NamedTuple

from llmc_jax.config import BadInput
from llmc_jax.lock import refuse_in_use


class RunDir(NamedTuple):
    """Names of everything a run writes."""

    root: Path

    @property
    def main_log(self) -> Path:
        """llm.c's log lines."""
        return self.root / "main.log"

    @property
    def metrics(self) -> Path:
        """The same and more, a JSON object a line."""
        return self.root / "metrics.jsonl"

    @property
    def picture(self) -> Path:
        """The loss curves."""
        return self.root / "losses.png"

    @property
    def profile(self) -> Path:
        """What --profile_steps writes."""
        return self.root / "profile"

    @property
    def tensorboard(self) -> Path:
        """What --tensorboard writes."""
        return self.root / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """One folder a step."""
        return self.root / "checkpoints"

    def holds_a_run(self) -> bool:
        """Whether a run has logged or saved anything here."""
        return bool(self.logs()) or any(self.checkpoints.glob("*"))

    def logs(self) -> list[Path]:
        """The two logs, those of them in which there is something."""
        logs = (self.main_log, self.metrics)
        return [path for path in logs if path.exists() and path.stat().st_size]


def find_checkpoints(run: str) -> Path:
    """The folder of the checkpoints of --run. Raises BadInput where it names no run with some."""
    if not Path(run).is_dir():
        raise BadInput(f"--run={run} is no directory; name the --output_dir of a training run.")
    folder = RunDir(Path(run)).checkpoints
    path = Path(run).absolute()
    if path.parent.name == folder.name and path.name.isdecimal():
        raise BadInput(
            f"--run={run} is a checkpoint and no run; take --run={path.parent.parent} with "
            f"--step={int(path.name)}."
        )
    if not folder.is_dir():
        raise BadInput(
            f"--run={run} has no checkpoints; train with --checkpoint_every, or make one of "
            f"llm.c's with llmc_jax.export."
        )
    return folder


def open_run_dir(output_dir: str, *, resume: bool, flag: str = "output_dir") -> RunDir:
    """The run directory, created if need be. Raises BadInput as `find_run_dir` does."""
    run = find_run_dir(output_dir, resume=resume, flag=flag)
    try:
        run.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unmakable(output_dir, flag, error) from error
    return run


def find_run_dir(output_dir: str, *, resume: bool, flag: str = "output_dir") -> RunDir:
    """The run directory, which need not be there. Raises BadInput, which names `flag`, where
    another run is in it, or what is none."""
    run = RunDir(Path(output_dir))
    try:  # it may have a name that cannot even be looked for
        if run.holds_a_run() and not resume:
            refuse_in_use(run.root, flag)
            raise BadInput(
                f"--{flag}={output_dir} already holds a run; "
                f"{'add --resume to continue it, or ' if flag == 'output_dir' else ''}name "
                f"another directory."
            )
        if run.checkpoints.exists() and not run.checkpoints.is_dir():
            raise BadInput(
                f"{run.checkpoints} is no directory; remove it, or name another --{flag}."
            )
    except OSError as error:
        raise _unmakable(output_dir, flag, error) from error
    return run


def _unmakable(output_dir: str, flag: str, error: OSError) -> BadInput:
    return BadInput(
        f"--{flag}={output_dir} cannot be made: {error.strerror}; name another directory."
    )
