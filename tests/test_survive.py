"""Runs that survive: signals, resuming the same run, damage, full disks, bad numbers, the lock."""

import dataclasses
import itertools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from llmc_jax import checkpoint as checkpoint_program
from llmc_jax import config, program, train
from llmc_jax.checkpoint import CheckpointConfig
from llmc_jax.config import BadInput, RunStopped
from llmc_jax.training import checkpoint, lock, manifest, saver
from llmc_jax.training.checkpoint import Checkpointer
from llmc_jax.training.logger import Logger, read_metrics
from llmc_jax.training.run_dir import RunDir
from llmc_jax.training.stop import Stop
from tests import tiny


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch):
    """--model=tiny."""
    monkeypatch.setitem(config.MODELS, "tiny", tiny.MODEL)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_data(tmp_path_factory.mktemp("data"), 400)


@pytest.fixture
def cfg(data, tmp_path):
    return tiny.config(**data, output_dir=f"{tmp_path}/run", val_batches=1, checkpoint_every=2)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The options of a run of 6 steps with checkpoints at 2, 4 and 6; not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    cfg = tiny.config(**data, output_dir=str(folder), val_batches=1, checkpoint_every=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(config.MODELS, "tiny", tiny.MODEL)
        train.main(cfg)
    return cfg


@pytest.fixture
def copied(trained, tmp_path):
    """The same in a directory of its own, to be changed, with --resume."""
    shutil.copytree(trained.output_dir, tmp_path / "copy")
    return dataclasses.replace(trained, output_dir=f"{tmp_path}/copy", resume=True)


def run_of(cfg) -> RunDir:
    return RunDir(Path(cfg.output_dir))


def steps(cfg) -> list[int]:
    return Checkpointer(run_of(cfg).checkpoints).steps()


def folder_of(cfg, step: int) -> Path:
    return run_of(cfg).checkpoints / f"{step:08d}"


def log(cfg) -> list[dict]:
    """metrics.jsonl without clocks."""
    lines = read_metrics(run_of(cfg).metrics)
    return [{k: v for k, v in m.items() if not k.endswith("_s")} for m in lines]


def damage(cfg, step: int) -> str:
    """Flip a bit in the largest file of a checkpoint; its name."""
    files = [path for path in folder_of(cfg, step).rglob("*") if path.is_file()]
    path = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    return path.relative_to(folder_of(cfg, step)).as_posix()


def interrupt_at(monkeypatch, step: int, number=signal.SIGTERM):
    """The process gets a signal while update `step` is being prepared."""
    real, calls = train.train_batch, []

    def batch(*args):
        calls.append(None)
        if len(calls) == step + 1:
            os.kill(os.getpid(), number)
        return real(*args)

    monkeypatch.setattr(train, "train_batch", batch)


# Signals, and which checkpoints there are.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on_as_if_nothing_had_been(
    cfg, trained, monkeypatch, capsys, number
):
    """Step 3 is due for validation: the resumed run does it, once."""
    interrupt_at(monkeypatch, 2, number)
    train.main(cfg)
    name = signal.Signals(number).name
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (
        f"stopped by {name} after step 3/6: checkpoint of step 3 saved; the same command with "
        f"--resume goes on"
    )
    assert steps(cfg) == [2, 3]
    monkeypatch.undo()
    monkeypatch.setitem(config.MODELS, "tiny", tiny.MODEL)
    train.main(dataclasses.replace(cfg, resume=True))
    assert log(cfg) == log(trained)


def test_a_signal_without_an_output_directory_says_that_nothing_is_saved(cfg, monkeypatch, capsys):
    interrupt_at(monkeypatch, 1)
    train.main(dataclasses.replace(cfg, output_dir="", checkpoint_every=0))
    assert capsys.readouterr().out.endswith(
        "after step 2/6: nothing is saved, because there is no --output_dir\n"
    )


def test_a_second_signal_ends_the_process_at_once():
    """In a process of its own, because it must not be this one; nor is the first enough."""
    program = (
        "import os, signal\nfrom llmc_jax.training.stop import Stop\n"
        "with Stop() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print(Stop.name(stop.requested), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('still here', flush=True)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == -signal.SIGTERM and result.stdout == "SIGTERM\n"


def test_signals_have_their_own_effect_again_afterwards():
    before = signal.getsignal(signal.SIGINT)
    with Stop():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_the_newest_and_the_major_checkpoints_are_kept(cfg):
    train.main(
        dataclasses.replace(
            cfg, max_steps=9, checkpoint_every=2, keep_checkpoints=2, major_checkpoint_every=3
        )
    )
    assert steps(cfg) == [3, 6, 8, 9]  # 2 and 4 are gone; 8 and 9 are the newest


def test_checkpoints_by_the_clock(cfg, monkeypatch):
    """A minute passes every time the run looks at the clock: once a step, once a save."""
    now = itertools.count(0, 60)
    monkeypatch.setattr(saver, "time", types.SimpleNamespace(monotonic=lambda: next(now)))
    train.main(dataclasses.replace(cfg, checkpoint_every=0, checkpoint_minutes=1.5))
    assert steps(cfg) == [2, 4, 6]


# The same run.


def test_what_may_change_is_said_and_taken(copied, capsys):
    train.main(dataclasses.replace(copied, max_steps=8, val_every=4))
    screen = capsys.readouterr().out
    assert "resuming with --max_steps was 6 and is now 8" in screen
    assert "resuming with --val_every was 3 and is now 4" in screen
    assert "schedule 6 steps" in screen and log(copied)[-1]["step"] == 8
    rates = [m["learning_rate"] for m in log(copied) if m.get("step", 0) >= 6 and "train_loss" in m]
    assert rates == pytest.approx([1e-3, 1e-3])  # its end: the schedule did not stretch


def test_another_schedule_needs_reschedule(copied, capsys):
    with pytest.raises(BadInput, match=r"--schedule_steps was 6 and is now 12.*--reschedule takes"):
        train.main(dataclasses.replace(copied, max_steps=8, schedule_steps=12))
    train.main(dataclasses.replace(copied, max_steps=8, schedule_steps=12, reschedule=True))
    screen = capsys.readouterr().out
    assert "resuming with --schedule_steps was 6 and is now 12" in screen
    assert log(copied)[-2]["learning_rate"] > 2e-3
    train.main(dataclasses.replace(copied, max_steps=8))  # it is the run's own now


def test_other_data_under_the_same_name_are_refused(copied, tmp_path):
    record = json.loads((folder_of(copied, 6) / "run.json").read_text())
    tiny.write_data(tmp_path, 500)
    for name in ("train_data", "val_data"):
        record["config"][name] = f"{tmp_path}/{Path(getattr(copied, name)).name}"
    (folder_of(copied, 6) / "run.json").write_text(json.dumps(record))
    rewrite_manifest(folder_of(copied, 6))
    moved = {name: record["config"][name] for name in ("train_data", "val_data")}
    with pytest.raises(BadInput, match=r"is not what the run in .* was started with"):
        train.main(dataclasses.replace(copied, **moved))


def rewrite_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    manifest.write(folder, without="unfinished")


def test_a_checkpoint_says_everything_about_its_run(trained):
    record = json.loads((folder_of(trained, 4) / "run.json").read_text())
    assert record["config"] == dataclasses.asdict(trained) | dict(
        schedule_steps=6, total_batch_size=32
    )
    assert record["step"] == 4 and record["tokens"] == 128 and record["loader"]["position"] == 8
    assert re.fullmatch("[0-9a-f]{12}", record["digest"])
    assert record["made_with"].keys() == {"ops", "device", "versions", "revision"}
    assert "orbax-checkpoint 0." in record["made_with"]["versions"]


def test_going_back_to_another_step(copied, trained, capsys):
    train.main(dataclasses.replace(copied, resume_step=2, checkpoint_every=0))
    screen = capsys.readouterr().out
    assert "at step 2" in screen and "the checkpoint of step 4 is now" in screen
    assert log(copied) == log(trained) and steps(copied) == [2]
    names = {path.name for path in run_of(copied).checkpoints.iterdir()}
    assert names == {"00000002", "00000004.later", "00000006.later"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(resume_step=3), "--resume_step=3 was not saved; .* has 2, 4, 6"),
        (dict(resume_step=4, resume=False), "--resume_step is for a run that is continued; add"),
        (dict(reschedule=True, resume=False), "--reschedule is for a run that is continued; add"),
        (dict(output_dir="", checkpoint_minutes=1.0, resume=False), "--checkpoint_minutes needs"),
    ],
)
def test_resume_refuses(copied, options, message):
    options = dict(checkpoint_every=0) | options
    with pytest.raises(BadInput, match=message):
        train.main(dataclasses.replace(copied, **options))


def test_a_new_run_starts_from_the_weights_of_another(cfg, trained):
    """Its first validation is the other's last, and its moments are new."""
    train.main(dataclasses.replace(cfg, init_from=trained.output_dir, max_steps=1))
    assert log(cfg)[0]["val_loss"] == log(trained)[-1]["val_loss"]
    assert log(cfg)[1]["step"] == 0
    again = dataclasses.replace(cfg, output_dir=cfg.output_dir + "2", max_steps=1)
    train.main(dataclasses.replace(again, init_from=str(folder_of(trained, 4))))
    assert log(again)[0]["val_loss"] != log(cfg)[0]["val_loss"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(init_from="/nowhere"), "--init_from=/nowhere is neither the directory of a run"),
        (dict(model="other"), "has L 2, NH 3, C 48, V 90 and --model=other has L 1, NH 3"),
    ],
)
def test_init_from_refuses(cfg, trained, monkeypatch, options, message):
    monkeypatch.setitem(config.MODELS, "other", dataclasses.replace(tiny.MODEL, L=1))
    options = dict(init_from=trained.output_dir) | options
    with pytest.raises(BadInput, match=message):
        train.main(dataclasses.replace(cfg, **options))


# Damage.


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(copied, trained, capsys):
    name = damage(copied, 6)
    train.main(copied)
    screen = capsys.readouterr().out
    assert (
        f"WARNING: the checkpoint of step 6 cannot be used: {name} has other bytes than were "
        f"written; it is now {folder_of(copied, 6)}.broken, and the run goes back to step 4"
    ) in screen
    assert log(copied) == log(trained) and steps(copied) == [2, 4, 6]


def test_where_all_are_damaged_nothing_is_started_or_changed(copied):
    for step in (2, 4, 6):
        (folder_of(copied, step) / "run.json").unlink()
    before = log(copied)
    with pytest.raises(BadInput, match=r"no checkpoint can be used \(.*00000006: run.json is mis"):
        train.main(copied)
    assert log(copied) == before and len(list(run_of(copied).checkpoints.iterdir())) == 3


def test_a_checkpoint_of_the_old_format_is_refused(copied):
    for step in (2, 4, 6):
        (folder_of(copied, step) / "manifest.json").unlink()
        (folder_of(copied, step) / "_CHECKPOINT_METADATA").touch()
    with pytest.raises(BadInput, match="it is of an older format, without checksums and outlier"):
        train.main(copied)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: os.truncate(path, 10), "has 10 bytes where"),
        (lambda path: path.write_bytes(path.read_bytes()[::-1]), "has other bytes"),
    ],
)
@pytest.mark.parametrize("name", ["run.json", "manifest.json", "state/_METADATA"])
def test_every_damage_is_found(copied, change, words, name):
    change(folder_of(copied, 4) / name)
    problem = Checkpointer(run_of(copied).checkpoints).problem(4)
    if name == "manifest.json" and words != "is missing":
        words = "is damaged"
    assert problem.startswith(f"{name} {words}")


def test_what_a_killed_run_left_unfinished_is_removed(copied, trained):
    (folder_of(copied, 6) / "unfinished").touch()
    (run_of(copied).checkpoints / "00000007").mkdir()
    train.main(copied)
    assert steps(copied) == [2, 4, 6] and log(copied) == log(trained)
    assert len(list(run_of(copied).checkpoints.iterdir())) == 3


def test_the_program_lists_verifies_and_removes(copied, capsys):
    def run(command, **options):
        status = checkpoint_program.main(
            command, CheckpointConfig(run=copied.output_dir, **options)
        )
        return status, capsys.readouterr().out.splitlines()

    status, lines = run("verify")
    assert status == 0 and len(lines) == 3
    assert re.match(r"00000002 +0\.\d MiB  tiny  run [0-9a-f]{12}  at \S+  whole", lines[0])
    name = damage(copied, 4)
    assert run("ls")[0] == 0
    status, lines = run("verify")
    assert status == 1 and f"{name} has other bytes" in lines[1]
    assert run("verify", step=6)[0] == 0
    folder_of(copied, 2).rename(f"{folder_of(copied, 2)}.later")
    assert run("ls")[1][-1] == "00000002.later  set aside"
    assert run("rm", step=4)[1] == [f"removed {folder_of(copied, 4)}"]
    assert run("rm", keep=0, set_aside=True)[0] == 0
    assert list(run_of(copied).checkpoints.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ls", "--run=/nowhere"], "--run=/nowhere has no checkpoints"),
        (["--run=/nowhere"], "one of the words ls, verify, rm is needed"),
        (["ls", "rm"], "one of the words ls, verify, rm is needed"),
        (["rm", "--run={run}"], "rm needs --step=N or --keep=N"),
        (["verify", "--step=5", "--run={run}"], "--step=5 was not saved; .* has 2, 4, 6"),
    ],
)
def test_the_program_refuses(trained, words, message):
    words = [word.replace("{run}", trained.output_dir) for word in words]
    result = subprocess.run(
        [sys.executable, "-m", "llmc_jax.checkpoint", *words], capture_output=True, text=True
    )
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert re.search(message, result.stderr)


# Disks.


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
    with pytest.raises(RunStopped, match=r"of step 6 could not .* whole one is of step 4; saving"):
        train.main(cfg)
    small_files(None)
    train.main(dataclasses.replace(cfg, resume=True))
    assert steps(cfg) == [2, 4, 6] and log(cfg) == log(trained)


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


# Bad numbers.


@pytest.fixture
def poison(monkeypatch):
    """A function: the losses of these steps become NaN, in what the run sees of its steps."""

    def poison(bad_steps):
        def prepare(step, *args):
            compiled = real(step, *args)
            count = itertools.count()

            def update(state, memory, inputs, targets):
                if next(count) in bad_steps:
                    kept = jax.tree.map(np.array, state)
                    broken = jax.tree.map(lambda x: x * np.float32(np.nan), state.params)
                    state, memory, metrics = compiled(
                        state._replace(params=broken), memory, inputs, targets
                    )
                    state = jax.device_put(kept._replace(step=kept.step + 1), state.step.sharding)
                    return state, memory, metrics
                return compiled(state, memory, inputs, targets)

            return update

        real = train.compile_update
        monkeypatch.setattr(train, "compile_update", prepare)

    return poison


def test_bad_steps_are_skipped_counted_and_logged(cfg, poison, capsys):
    poison({3})
    train.main(dataclasses.replace(cfg, checkpoint_every=0, val_every=0))
    screen = capsys.readouterr().out
    assert "step    4 skipped: loss nan (+nanz), norm nan (+nanz)" in screen
    assert "1 steps were skipped: metrics.jsonl says which" in screen
    assert [m["step"] for m in log(cfg) if m.get("skipped")] == [3]
    assert np.isfinite(log(cfg)[-1]["train_loss"])


def test_too_many_bad_steps_stop_the_run_and_leave_the_good_checkpoint(cfg, poison):
    poison(range(2, 99))
    with pytest.raises(RunStopped, match=r"not finite in 3 steps in a row .*=3\).* of step 2, is"):
        train.main(dataclasses.replace(cfg, max_bad_steps=3, max_steps=20))
    assert steps(cfg) == [2]
    assert [m["step"] for m in log(cfg) if m.get("skipped")] == [2, 3, 4]


def test_a_checkpoint_waits_until_numbers_are_good_again(cfg, poison, capsys):
    poison({2, 3})
    train.main(cfg)
    assert steps(cfg) == [2, 5, 6]
    assert "no checkpoint at step 4: the numbers of the last step" in capsys.readouterr().out


def test_a_stopped_run_has_exit_status_1(monkeypatch, capsys):
    """And no traceback; absl ends the process with what start returns."""
    monkeypatch.setattr(program.app, "run", lambda start: codes.append(start(["program"])))
    monkeypatch.setattr(program, "define_flags", lambda *_: None)
    codes = []

    def main(_):
        raise RunStopped("it is over.")

    program.run(main, dataclasses.make_dataclass("Empty", []))
    assert codes == [1] and capsys.readouterr().err == "error: it is over.\n"


# The lock.


def test_two_runs_in_one_directory_are_refused_by_name(copied):
    holder = subprocess.Popen(
        [
            sys.executable, "-c",
            "import pathlib, sys, time\nfrom llmc_jax.training.lock import locked\n"
            "with locked(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n"
            "    time.sleep(60)",
            copied.output_dir,
        ],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout.readline() == "held\n"
    message = rf"is in use by process {holder.pid} on \S+ \(since .*\); wait for it to end, or name"
    with pytest.raises(BadInput, match=message):
        train.main(copied)
    with pytest.raises(BadInput, match=message):
        checkpoint_program.main("rm", CheckpointConfig(run=copied.output_dir, keep=0))
    holder.kill()
    holder.communicate()
    with lock.locked(Path(copied.output_dir)) as remark:  # it died with it
        assert remark.startswith(f"process {holder.pid} on ")
        assert "and ended without giving it back" in remark
    with lock.locked(Path(copied.output_dir)) as remark:
        assert remark == ""


# The program that does all of it at random.


def test_runs_survive_random_faults():
    """The short version of benchmarks/results/faults.md."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--count=8", "--seed=3", "--most=1"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "8 of 8 runs ended equal" in result.stdout
