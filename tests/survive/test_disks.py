"""Disks that are full, gone, or not to be written to."""

import contextlib
import dataclasses
import itertools
import re
import resource
import shutil
import subprocess
from pathlib import Path

import pytest

from llmc_jax import checkpoint as checkpoint_program
from llmc_jax import lock, train
from llmc_jax.checkpoint import CheckpointConfig
from llmc_jax.config import BadInput, RunStopped
from llmc_jax.training import checkpoint
from llmc_jax.training.checkpoint import Checkpointer
from llmc_jax.training.logger import Logger, read_metrics
from llmc_jax.training.run_dir import RunDir
from tests.survive.runs import log, steps


@pytest.fixture
def small_files():
    """A function that lets no file of this process grow beyond so many bytes; None: any."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size or before[0], before[1]))

    yield limit
    limit(None)


def at_steps(monkeypatch, actions: dict) -> None:
    """Do actions[step]() while update `step` is being prepared."""
    real, calls = train.train_batch, itertools.count()

    def batch(*args):
        actions.get(next(calls), lambda: None)()
        return real(*args)

    monkeypatch.setattr(train, "train_batch", batch)


def test_a_checkpoint_that_does_not_fit_is_tried_again(
    cfg, trained, monkeypatch, small_files, capsys
):
    """There is no room at step 2, and there is at step 4."""
    at_steps(monkeypatch, {0: lambda: small_files(100_000), 3: lambda: small_files(None)})
    train.main(cfg)
    assert (
        "WARNING: the checkpoint of step 2 could not be written: File too large; there is no "
        "other yet; saving is tried again at the next one"
    ) in capsys.readouterr().out
    assert steps(cfg) == [4, 6] and log(cfg) == log(trained)


@pytest.fixture
def mount(tmp_path):
    """A function that mounts a disk of so many bytes in memory; skips where that is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()

    def command(*words):
        result = subprocess.run([*words, place], capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"no disk can be mounted here: {result.stderr.strip()}")
        return place

    try:
        yield lambda options: command("mount", "-t", "tmpfs", "-o", options, "tmpfs")
    finally:
        while place.is_mount():
            subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("found", ["before", "while writing"])
def test_a_full_disk(cfg, trained, monkeypatch, mount, capsys, found):
    """It is full at step 2, and larger from step 3 on."""
    cfg = dataclasses.replace(cfg, output_dir=f"{mount('size=900k')}/run")
    if found == "while writing":
        monkeypatch.setattr(checkpoint, "_claim_space", lambda *_: None)
    save = Checkpointer.save
    monkeypatch.setattr(Checkpointer, "save", lambda self, *args: [save(self, *args), self.wait()])
    at_steps(monkeypatch, {3: lambda: mount("remount,size=64m")})
    train.main(cfg)
    output = capsys.readouterr()
    assert (
        "WARNING: the checkpoint of step 2 could not be written: No space left on device; there is "
        "no other yet; saving is tried again at the next one"
    ) in output.out
    assert "Traceback" not in output.out + output.err
    assert steps(cfg) == [4, 6] and log(cfg) == log(trained)


def test_a_disk_that_is_full_from_the_start(cfg, mount, capsys):
    """A new run and one that goes on train all the same, and end with a sentence."""
    disk = mount("size=8m")
    there = dataclasses.replace(cfg, output_dir=f"{disk}/run", max_steps=2)
    train.main(there)
    with open(disk / "filled", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"0" * 4096):
            pass
    for run in (
        dataclasses.replace(there, output_dir=f"{disk}/other"),
        dataclasses.replace(there, max_steps=6, resume=True),
    ):
        with pytest.raises(RunStopped, match="could not be written: No space left on device"):
            train.main(run)
    screen = capsys.readouterr().out
    assert "metrics.jsonl cannot be written: No space left on device; its lines are kept" in screen
    assert "WARNING: " in screen and " lines of metrics.jsonl are lost." in screen
    (disk / "filled").unlink()
    train.main(dataclasses.replace(there, max_steps=6, resume=True, schedule_steps=2))
    assert steps(there) == [2, 4, 6]
    assert [m["step"] for m in log(there) if "train_loss" in m] == [0, 1, 2, 3, 4, 5]


def test_a_lock_on_a_full_disk_holds_and_has_no_name(tmp_path, small_files):
    small_files(10)
    with lock.locked(tmp_path), pytest.raises(BadInput, match="is in use by another process"):
        lock.refuse_in_use(tmp_path)
    with lock.locked(tmp_path) as remark:
        assert remark == ""


def test_a_disk_that_cannot_be_written(cfg, trained, mount, capsys):
    """Training there is refused; what is on it can be read."""
    disk = mount("size=64m")
    shutil.copytree(trained.output_dir, disk / "run")
    mount("remount,ro")
    there = dataclasses.replace(trained, output_dir=f"{disk}/run", resume=True)
    with pytest.raises(BadInput, match=r"run cannot be written: Read-only file system; name ano"):
        train.main(there)
    assert checkpoint_program.main("verify", CheckpointConfig(run=f"{disk}/run")) == 0
    train.main(dataclasses.replace(cfg, init_from=f"{disk}/run", max_steps=1))
    assert log(cfg)[0]["val_loss"] == log(trained)[-1]["val_loss"]


def test_a_last_checkpoint_that_does_not_fit_ends_the_run_with_a_sentence(
    cfg, trained, monkeypatch, small_files
):
    save = Checkpointer.save
    monkeypatch.setattr(Checkpointer, "save", lambda self, *args: [save(self, *args), self.wait()])
    at_steps(monkeypatch, {4: lambda: small_files(100_000)})
    told = r"of step 6 could not .* one is of step 4; saving .*--resume: the steps after that one "
    with pytest.raises(RunStopped, match=told):
        train.main(cfg)
    small_files(None)
    train.main(dataclasses.replace(cfg, resume=True))
    assert steps(cfg) == [2, 4, 6] and log(cfg) == log(trained)


def test_where_the_only_checkpoint_does_not_fit_all_steps_are_lost(
    cfg, trained, monkeypatch, small_files
):
    """A resume begins with the first."""
    cfg = dataclasses.replace(cfg, checkpoint_every=6)
    at_steps(monkeypatch, {4: lambda: small_files(100_000)})
    told = r"File too large; there is no other: all steps are lost, --resume starts from the begin"
    with pytest.raises(RunStopped, match=told):
        train.main(cfg)
    small_files(None)
    train.main(dataclasses.replace(cfg, resume=True))
    assert steps(cfg) == [6] and log(cfg) == log(trained)


def test_a_folder_that_vanishes_costs_its_checkpoints_only(cfg, monkeypatch, capsys):
    """Nothing is made anew where a disk may have been; lines of the log wait in memory."""
    root = Path(cfg.output_dir)
    away = root.with_name("away")
    at_steps(monkeypatch, {1: lambda: root.rename(away), 3: lambda: away.rename(root)})
    train.main(cfg)
    screen = capsys.readouterr().out
    assert "the checkpoint of step 2 could not be written: No such file or directory" in screen
    assert "metrics.jsonl cannot be written: No such file or directory; its lines are" in screen
    assert steps(cfg) == [4, 6]
    assert [m["step"] for m in log(cfg) if "train_loss" in m] == [0, 1, 2, 3, 4, 5]


def test_log_lines_that_were_never_written_end_the_run_with_a_sentence(
    cfg, monkeypatch, small_files, capsys
):
    """They had been kept in memory; all that could be written is there."""
    at_steps(monkeypatch, {1: lambda: small_files(800)})
    told = r"metrics.jsonl cannot be written: File too large; the last (\d) lines of metrics.json"
    with pytest.raises(RunStopped, match=told) as error:
        train.main(dataclasses.replace(cfg, checkpoint_every=0))
    assert str(error.value).endswith("l are lost. The training is as it should be.")
    lost = int(re.search(told, str(error.value))[1])
    assert lost + len(log(cfg)) == 9


def test_a_log_line_is_written_whole_or_not_at_all(tmp_path, small_files):
    run = RunDir(tmp_path)
    logger = Logger(run, 0)
    logger.val(0, 1.0, 32)
    small_files(run.metrics.stat().st_size + 5)
    logger.val(3, 2.0, 32)
    assert "metrics.jsonl cannot be written: File too large" in logger.problem
    assert len(read_metrics(run.metrics)) == 1
    small_files(None)
    logger.val(6, 3.0, 32)
    assert not logger.problem
    assert [m["step"] for m in read_metrics(run.metrics)] == [0, 3, 6]


def test_a_log_that_cannot_be_cut_ends_the_run_and_keeps_its_lines(tmp_path, small_files):
    """Not as a mistake in flags does: the next start may go well. What need not be cut is not."""
    run = RunDir(tmp_path)
    logger = Logger(run, 0)
    for step in (0, 3, 6):
        logger.val(step, 1.0, 32)
    small_files(10)
    with pytest.raises(RunStopped, match=r"from step 3 on cannot .*main.log .*: File too large. M"):
        Logger(run, 3)
    Logger(run, 7)
    assert [m["step"] for m in read_metrics(run.metrics)] == [0, 3, 6]
    assert not list(tmp_path.glob("*.tmp"))
    small_files(None)
    Logger(run, 3)
    assert [m["step"] for m in read_metrics(run.metrics)] == [0, 3]


def test_half_a_line_at_the_end_of_a_log_is_cut_off(tmp_path):
    run = RunDir(tmp_path)
    logger = Logger(run, 0)
    logger.val(0, 1.0, 32)
    run.metrics.write_text(run.metrics.read_text() + '{"step": 3, "val_l')
    assert len(read_metrics(run.metrics)) == 1
    Logger(run, 6)
    assert run.metrics.read_text().count("\n") == 1


def test_a_directory_that_cannot_be_written_is_refused(copied):
    """A file is where the lock has to be (root may write where it is not allowed to)."""
    (Path(copied.output_dir) / "lock").unlink()
    (Path(copied.output_dir) / "lock").mkdir()
    with pytest.raises(BadInput, match=r"--output_dir=.*copy cannot be written: Is a directory"):
        train.main(copied)
