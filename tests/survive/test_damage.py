"""Checkpoints that are not what was written."""

import dataclasses
import os
import re

import pytest

from llmc_jax import checkpoint as checkpoint_program
from llmc_jax import export, train
from llmc_jax.checkpoint import CheckpointConfig
from llmc_jax.config import BadInput
from llmc_jax.export import ExportConfig
from llmc_jax.trained import open_trained
from llmc_jax.training import parallel
from llmc_jax.training.checkpoint import Checkpointer
from llmc_jax.training.resume import run_before
from tests.survive.runs import damage, folder_of, log, run_of, steps


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(copied, trained, capsys):
    name = damage(copied, 6)
    train.main(copied)
    screen = capsys.readouterr().out
    assert (
        f"WARNING: the checkpoint of step 6 cannot be used: {name} has other bytes than were "
        f"written; it is now {folder_of(copied, 6)}.broken, and the run goes back to step 4"
    ) in screen
    assert log(copied) == log(trained) and steps(copied) == [2, 4, 6]


def test_a_damaged_run_json_is_not_believed(copied, capsys):
    """It is asked for the model, before all of the checkpoint is read."""
    path = folder_of(copied, 6) / "run.json"
    path.write_bytes(path.read_bytes().replace(b'"config"', b'"confug"'))
    assert run_before(copied)["step"] == 4
    train.main(copied)
    assert "run.json has other bytes than were written; it is now" in capsys.readouterr().out
    assert steps(copied) == [2, 4, 6]


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


def test_a_bad_token_costs_no_step_that_was_made_before(cfg, monkeypatch, capsys):
    """A resume would come to it again, and is refused where the data have been mended."""

    def batch(batches):
        made, waited = real(batches)
        if len(log(cfg)) == 4:  # a validation and three steps, and one that is under way
            raise BadInput("train_0.bin has token 99.")
        return made, waited

    real = train.train_batch
    monkeypatch.setattr(train, "train_batch", batch)
    with pytest.raises(BadInput, match="has token 99"):
        train.main(dataclasses.replace(cfg, checkpoint_every=0, val_every=5))
    assert steps(cfg) == [4] and [m["step"] for m in log(cfg)] == [0, 0, 1, 2, 3]
    assert capsys.readouterr().out.endswith(
        f"checkpoint of step 4 saved; with the data mended, --init_from={cfg.output_dir} starts a "
        f"new run from its weights\n"
    )


@pytest.mark.parametrize("val_every", [0, 5])
def test_a_bad_token_in_the_first_batch(cfg, monkeypatch, capsys, val_every):
    """What is said to start again does, also where a validation has been logged."""

    def batch(_):
        raise BadInput("train_0.bin has token 99.")

    cfg = dataclasses.replace(cfg, val_every=val_every, max_steps=1)
    with monkeypatch.context() as patch, pytest.raises(BadInput, match="has token 99"):
        patch.setattr(train, "train_batch", batch)
        train.main(cfg)
    flag = " with --resume" if val_every else ""
    said = f"no step was finished, so nothing is saved; the same command{flag} starts again\n"
    assert capsys.readouterr().out.endswith(said)
    train.main(dataclasses.replace(cfg, resume=bool(flag)))
    assert [m["step"] for m in log(cfg) if "train_loss" in m] == [0]


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
    path = folder_of(copied, 2) / "run.json"
    path.write_bytes(path.read_bytes()[::-1])
    assert re.search(r"MiB  run.json is damaged$", run("ls", step=2)[1][0])
    assert checkpoint_program._size(folder_of(copied, 5)) == 0  # just removed by a run
    assert run("verify", step=6)[0] == 0
    folder_of(copied, 2).rename(f"{folder_of(copied, 2)}.later")
    assert run("ls")[1][-1] == "00000002.later  set aside"
    assert run("rm", step=4)[1] == [f"removed {folder_of(copied, 4)}"]
    users = [run_of(copied).checkpoints / f"00000006.{name}" for name in ("mine", "later.old")]
    for folder in users:
        folder.mkdir()
    folder_of(copied, 6).with_suffix(".broken12").mkdir()
    assert run("rm", step=6, set_aside=True)[0] == 0
    assert set(run_of(copied).checkpoints.iterdir()) == set(users)


def test_a_model_from_a_damaged_checkpoint_is_refused_with_one_that_is_whole(copied):
    """By generate, evaluate and export, which go back to none by themselves."""
    run = copied.output_dir

    def read(step: int = -1):
        open_trained(parallel.make_mesh(), run=run, model="", step=step)
        export.read_source(ExportConfig(source=run, step=step))

    damage(copied, 6)
    told = "00000006 cannot be used: .* other bytes .*; that of step 4 is whole, take it with --st"
    with pytest.raises(BadInput, match=told):
        read()
    with pytest.raises(BadInput, match=told):
        export.read_source(ExportConfig(source=run))
    (folder_of(copied, 6) / "run.json").unlink()
    for step in (-1, 6):
        with pytest.raises(BadInput, match=r"0006 cannot be used: run\.json is missing; that of"):
            read(step)
    (folder_of(copied, 6) / "manifest.json").unlink()
    with pytest.raises(BadInput, match=r"0006 cannot be used: manifest\.json is missing; that"):
        read()
    (folder_of(copied, 6) / "unfinished").touch()  # and never was a checkpoint
    read()
    read(step=4)
    damage(copied, 4)
    damage(copied, 2)
    with pytest.raises(BadInput, match=r"00000004 cannot be used: .*; nor can any other of this"):
        read(step=4)
    for step in (2, 4, 6):
        (folder_of(copied, step) / "manifest.json").unlink(missing_ok=True)
    with pytest.raises(BadInput, match=r"has no complete checkpoint; see python -m llmc_jax.check"):
        read()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ls", "--run=/nowhere"], "--run=/nowhere is no directory"),
        (["--run=/nowhere"], "one of the words ls, verify, rm is needed"),
        (["ls", "rm"], "one of the words ls, verify, rm is needed"),
        (["verify", "--run={run}", "--keep=3"], "--keep and --set_aside are for rm; verify rem"),
        (["ls", "--run={run}", "--set_aside"], "--keep and --set_aside are for rm; ls removes no"),
        (["rm", "--run={run}", "--keep=0"], "--keep=0 would leave none; if that is meant, remove"),
        (["rm", "--run={run}"], "rm needs --step=N or --keep=N"),
        (["verify", "--step=5", "--run={run}"], "--step=5 was not saved; .* has 2, 4, 6"),
        (["ls", "--run={run}/checkpoints/00000004"], "and no run; take --run=/.* with --step=4"),
    ],
)
def test_the_program_refuses(run_program, trained, words, message):
    words = [word.replace("{run}", trained.output_dir) for word in words]
    result = run_program("checkpoint", *words)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert re.search(message, result.stderr)
