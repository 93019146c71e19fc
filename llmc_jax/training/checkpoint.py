"""Checkpoints of a run: one folder a step, whole or not counted.

A folder holds `state` (the training state in its global form, whatever the devices were, in
orbax's format), run.json (the options, the model's sizes, the data, versions) and, written last, a
manifest of all files. What has no valid manifest is no checkpoint. The step, tokens and loader's
position in run.json are for people: a resume has the step from the folder's name, and the place in
the data from the step.
"""

import errno
import json
import os
import shutil
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from llmc_jax.config import BadInput
from llmc_jax.files import set_aside, sync
from llmc_jax.models.gpt2 import Params
from llmc_jax.training import arrays, manifest, placement
from llmc_jax.training.step import TrainState

STEP_DIGITS = 8
STATE = "state"
RUN = "run.json"
LEAF_BYTES = 1 << 14  # an array takes beside its own: two files and a folder, in blocks
UNFINISHED = "unfinished"  # a file in a folder that is being written or removed


class Broken(BadInput):
    """A checkpoint is not what was written."""


class Failure(NamedTuple):
    """A checkpoint that could not be written, and why."""

    step: int
    reason: str


class Checkpointer:
    """Saves and restores the checkpoints in one folder; a context that ends with all on disk."""

    def __init__(self, folder: Path, *, keep: int = 0, major_every: int = 0, writes: bool = True):
        """keep: how many of the newest checkpoints stay after a save; 0: all. Those of every
        major_every steps stay too (0: none). writes: False in a process that only helps another to
        save, by sending it what it has of the state."""
        self._folder, self._keep, self._major_every = folder, keep, major_every
        self._writes = writes
        self._copy = None  # of the state, reused: fresh memory takes longer to touch than to copy
        self._thread = None
        self._failure = None
        self.written = None  # step of the last that this wrote to the end
        self._verified = set()  # steps that were read and found whole

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, in order; what is in their files is not looked at."""
        return [step for step in self.all_steps() if not self.problem(step, contents=False)]

    def all_steps(self) -> list[int]:
        """Steps of all folders, in order, whole or not."""
        names = [path.name for path in self._folder.glob("?" * STEP_DIGITS) if path.is_dir()]
        return sorted(int(name) for name in names if name.isdecimal())

    def written_steps(self) -> list[int]:
        """Steps of all folders that were written to the end, in order: also what has been damaged
        since."""
        return [step for step in self.all_steps() if not _is_unfinished(self.path(step))]

    def newest(self) -> int | None:
        """Step of the newest complete checkpoint, None if there is none; what is being written is
        waited for."""
        self.wait()
        return max(self.steps(), default=None)

    def path(self, step: int) -> Path:
        """The folder of the checkpoint of `step`."""
        return self._folder / f"{step:0{STEP_DIGITS}d}"

    def problem(self, step: int, *, contents: bool = True) -> str:
        """What is wrong with the checkpoint of `step`, '' for nothing; contents: read it all."""
        if step in self._verified:
            return ""
        folder = self.path(step)
        if not folder.is_dir():
            return "it is not there"
        if _is_unfinished(folder):
            return "it was not written to the end"
        if (folder / "_CHECKPOINT_METADATA").exists() and not (folder / manifest.NAME).exists():
            return "it is of an older format, without checksums and outlier windows"
        problem = manifest.problem(folder, contents=contents)
        if contents and not problem:
            self._verified.add(step)
        return problem

    # Writing.

    def remove_unfinished(self) -> None:
        """Remove what runs that were killed left behind. Only for who holds the run's lock."""
        for step in self.all_steps():
            if _is_unfinished(self.path(step)):
                _remove(self.path(step))

    def reserve(self, like: TrainState, *, touch: bool = True) -> None:
        """Take the memory for copies of a state with the shapes and dtypes of `like`; touch: in the
        background, so that no save has to wait until the system gives it."""
        self._copy = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
        if touch and self._writes:
            self._start(self._touch)

    def save(self, state: TrainState, run: dict, step: int) -> None:
        """Write a checkpoint. Returns once the state is copied; writing goes on meanwhile.

        state: as it lies on the devices, in parts or not (then `reserve` said what its shapes are).
        What goes wrong with the writing is kept for take_failure().
        """
        self.wait()
        if self._copy is None:
            self.reserve(state)
            self.wait()
        # Array by array: together they may not fit on one device.
        for copy, leaf in zip(jax.tree.leaves(self._copy), jax.tree.leaves(state), strict=True):
            leaf = jax.block_until_ready(placement.whole(leaf, copy.shape))
            if self._writes:
                _copy_to(copy, leaf)
        if self._writes:
            self._start(self._write, run, step)

    def wait(self) -> None:
        """Wait until what is being written is on disk, or has failed."""
        if self._thread:
            self._thread.join()
            self._thread = None

    def take_failure(self) -> Failure | None:
        """What went wrong with the last save, once."""
        failure, self._failure = self._failure, None
        return failure

    def remove(self, step: int) -> None:
        """Remove a checkpoint; one that is interrupted leaves nothing that looks whole."""
        self._verified.discard(step)  # another may be saved there
        (self.path(step) / UNFINISHED).touch()
        _remove(self.path(step))

    def set_aside(self, step: int, why: str) -> Path:
        """Rename the folder of `step`, so that it is no checkpoint any more; its new name."""
        self._verified.discard(step)
        return set_aside(self.path(step), why)

    # Reading. What is read has been compared with its manifest.

    def restore_run(self, step: int) -> dict:
        """The JSON object saved with the checkpoint of `step`."""
        self._verify(step)
        return json.loads((self.path(step) / RUN).read_text())

    def peek_run(self, step: int) -> dict | None:
        """The same, where no other file is looked at; None where this one is not what was
        written."""
        folder = self.path(step)
        if manifest.problem(folder, contents=True, only=RUN):
            return None
        return json.loads((folder / RUN).read_text())

    def restore_state(self, step: int, like: TrainState) -> TrainState:
        """The state of `step`, placed as the shapes and shardings of `like` say."""
        self._verify(step)
        return _read_tree(self.path(step) / STATE, like)

    def restore_params(self, step: int, like: Params) -> Params:
        """Only the parameters of `step`; the moments stay on disk."""
        self._verify(step)
        like = dict(params=like)
        return _read_tree(self.path(step) / STATE, like, partial_restore=True)["params"]

    def _verify(self, step: int) -> None:
        """Raises Broken where the checkpoint is not what was written."""
        if problem := self.problem(step):
            raise Broken(
                f"the checkpoint {self.path(step)} cannot be used: {problem}; take another, or "
                f"start again."
            )

    def _start(self, work, *args) -> None:
        # A daemon: a signal that ends the process at once does not wait for it.
        self._thread = threading.Thread(target=work, args=args, daemon=True)
        self._thread.start()

    def _touch(self) -> None:
        for leaf in jax.tree.leaves(self._copy):
            leaf.fill(0)

    def _write(self, run: dict, step: int) -> None:
        """Write the copy of the state, then remove the checkpoints that are not to be kept."""
        folder, made = self.path(step), False
        try:
            self._folder.mkdir(exist_ok=True)
            folder.mkdir()
            made = True
            (folder / UNFINISHED).touch()
            _claim_space(
                folder, sum(leaf.nbytes + LEAF_BYTES for leaf in jax.tree.leaves(self._copy))
            )
            written = _write_tree(folder / STATE, self._copy)
            (folder / RUN).write_text(json.dumps(run, indent=1))
            manifest.write(folder, without=UNFINISHED, written=written)
            (folder / UNFINISHED).unlink()
            sync(folder)  # else the mark may be there again after a power loss
            self.written = step
        except Exception as error:  # whatever it is, the run goes on and tries again
            with suppress(OSError):
                if made:  # what was there before is not this save's to remove
                    _remove(folder)
            self._failure = Failure(step, reason_of(error))
            return
        with suppress(OSError):  # what could not be removed is, after the next save
            self._remove_old()

    def _remove_old(self) -> None:
        """Only the newest complete checkpoints and those of every major_every steps stay."""
        for step in self.steps()[: -self._keep] if self._keep else []:
            if not (self._major_every and step % self._major_every == 0):
                self.remove(step)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_) -> None:
        """Wait until everything saved is on disk."""
        self.wait()


def _is_unfinished(folder: Path) -> bool:
    """Whether it is being written or removed, or was when that was killed; or has just gone."""
    try:
        return (folder / UNFINISHED).exists() or not any(folder.iterdir())
    except FileNotFoundError:
        return True


def _remove(folder: Path) -> None:
    """Remove a folder that has the mark of an unfinished one, the mark last: what a kill leaves is
    then known as what it is."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != UNFINISHED:
            path.unlink()
    (folder / UNFINISHED).unlink(missing_ok=True)
    folder.rmdir()


def _copy_to(copy: np.ndarray, leaf: jax.Array) -> None:
    """Copy one array of the state; it can be donated again when this returns."""
    if leaf.is_fully_replicated:
        leaf = leaf.addressable_data(0)
        if leaf.platform() == "cpu":  # a view that, unlike numpy.asarray's, the array does not keep
            np.copyto(copy, np.from_dlpack(leaf))
            return
    np.copyto(copy, jax.device_get(leaf))


def _claim_space(folder: Path, size: int) -> None:
    """Raises OSError where `folder` has no room for `size` bytes and a little more.

    The writing would find out too, but only after it has made the disk full for everyone.
    """
    path = folder / "space"
    with open(path, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size + (1 << 20))
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EINVAL):  # not all file systems can
                raise
    path.unlink()


def _write_tree(folder: Path, tree) -> dict[Path, tuple[int, int]]:
    """Write arrays in orbax's format, in their place: it is the manifest that makes them valid.

    Sizes and checksums of their files.
    """
    folder.mkdir()
    path, files = epath.Path(folder.absolute()), arrays.ArrayFiles()
    with closing(arrays.handler(files)) as handler:
        handler.save(path, args=ocp.args.PyTreeSave(tree))
    return files.written


def _read_tree(folder: Path, like, **options):
    """Read the arrays of `like`, each to where its sharding says."""
    places = jax.tree.map(lambda x: ocp.ArrayRestoreArgs(sharding=x.sharding), like)
    args = ocp.args.PyTreeRestore(like, restore_args=places, **options)
    with closing(arrays.handler(arrays.ArrayFiles())) as handler:
        return handler.restore(epath.Path(folder.absolute()), args=args)


def reason_of(error: Exception) -> str:
    """What an error says, in a line; the system's words where they are in it."""
    words = str(error)
    for number in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES):
        if os.strerror(number).lower() in words.lower():
            return os.strerror(number)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    return f"{type(error).__name__}: {words.splitlines()[0] if words else 'no reason given'}"
