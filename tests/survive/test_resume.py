"""The same run, and what is another."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from llmc_jax import config, train
from llmc_jax.config import BadInput
from llmc_jax.data.tokens import write_shard
from llmc_jax.interop import huggingface, llmc
from llmc_jax.models.initialize import initialize
from llmc_jax.training import manifest
from llmc_jax.training.checkpoint import Checkpointer
from llmc_jax.training.resume import Start, find_start
from llmc_jax.training.run_dir import RunDir
from tests import tiny
from tests.survive.runs import folder_of, log, run_of, steps


def test_what_may_change_is_said_and_taken(copied, capsys):
    train.main(dataclasses.replace(copied, max_steps=8, val_every=4))
    screen = capsys.readouterr().out
    assert "resuming with --max_steps was 6 and is now 8" in screen
    assert "resuming with --val_every was 3 and is now 4" in screen
    assert "schedule 6 steps" in screen and log(copied)[-1]["step"] == 8
    rates = [m["learning_rate"] for m in log(copied) if m.get("step", 0) >= 6 and "train_loss" in m]
    assert rates == pytest.approx([1e-3, 1e-3])  # its end: the schedule did not stretch


def test_a_checkpoint_from_before_the_last_step_is_said_to_be_so(copied, capsys):
    train.main(copied)
    assert "copy/checkpoints/00000006\n" in capsys.readouterr().out
    train.main(dataclasses.replace(copied, max_steps=8, checkpoint_every=0))
    told = "copy/checkpoints/00000006 (of step 6 of 8: nothing after it is saved)\n"
    assert told in capsys.readouterr().out


def test_another_schedule_needs_reschedule(copied, capsys):
    with pytest.raises(BadInput, match=r"--schedule_steps was 6 and is now 12.*--reschedule takes"):
        train.main(dataclasses.replace(copied, max_steps=8, schedule_steps=12))
    train.main(dataclasses.replace(copied, max_steps=8, schedule_steps=12, reschedule=True))
    screen = capsys.readouterr().out
    assert "resuming with --schedule_steps was 6 and is now 12" in screen
    assert log(copied)[-2]["learning_rate"] > 2e-3
    train.main(dataclasses.replace(copied, max_steps=8))  # it is the run's own now


@pytest.fixture
def moved(copied, tmp_path):
    """The same run with its data in another folder."""
    return dataclasses.replace(copied, **tiny.write_data(tmp_path, 400))


def test_the_same_data_elsewhere_are_the_same(moved, tmp_path, capsys):
    train.main(moved)
    screen = capsys.readouterr().out
    assert "already trained to step 6" in screen and "other tokens" not in screen
    for name in ("train_data", "val_data"):
        assert re.search(rf"resuming with --{name} was .* and is now {tmp_path}", screen)


def test_other_data_are_refused(moved, tmp_path):
    """Those of another size, and those of which one token in the middle is another."""
    message = r"--train_data=.* is not what .* was started with \(2 shards, 36 seq.*; now 2 shards"
    write_shard(tmp_path / "train_0.bin", np.where(np.arange(400) == 200, 0, tiny.tokens(400)))
    with pytest.raises(BadInput, match=message):
        train.main(moved)
    tiny.write_data(tmp_path, 500)
    with pytest.raises(BadInput, match=message):
        train.main(moved)


def test_another_mix_of_the_same_data_is_refused(cfg):
    files = [cfg.train_data.replace("*", name) for name in "01"]
    mixes = ["{}:3,{}:1", "{}:0.75,{}:0.25", "{}:1,{}:1"]
    mixes = [dict(train_data=mix.format(*files)) for mix in mixes]
    train.main(dataclasses.replace(cfg, **mixes[0]))
    train.main(dataclasses.replace(cfg, resume=True, **mixes[1]))
    message = "mixed 3/4 : 1/4, checksums .*; now .* mixed 1/2 : 1/2, "
    with pytest.raises(BadInput, match=message):
        train.main(dataclasses.replace(cfg, resume=True, **mixes[2]))


def test_other_tokens_to_validate_on_are_said(moved, tmp_path, capsys):
    """Whatever they are called: how often a run is measured, and by what, is not what it is."""
    write_shard(tmp_path / "val.bin", tiny.tokens(100, seed=9))
    train.main(moved)
    assert "resuming with other tokens to validate on: losses of" in capsys.readouterr().out


def test_a_checkpoint_that_says_less_of_its_data_is_taken(copied, moved, capsys):
    """As those of older versions: by the name, and what it does say."""
    record = json.loads((folder_of(copied, 6) / "run.json").read_text())
    for key in ("sampled", "sets"):
        del record["data"][key]
    del record["val_data"]
    (folder_of(copied, 6) / "run.json").write_text(json.dumps(record))
    rewrite_manifest(folder_of(copied, 6))
    with pytest.raises(BadInput, match=r"other options \(--train_data was .* and is now "):
        train.main(moved)
    train.main(dataclasses.replace(copied, max_steps=8))
    assert "other tokens" not in capsys.readouterr().out


def test_another_model_under_the_same_name_is_refused(copied, monkeypatch):
    """As a file that --model names can be."""
    monkeypatch.setitem(config.MODELS, "tiny", dataclasses.replace(tiny.MODEL, L=1))
    message = r"--model=tiny is not what .* \(L 2 NH 3 C 48 .*; now L 1 NH 3 C 48 .*\); name"
    with pytest.raises(BadInput, match=message):
        train.main(copied)


def test_the_weights_a_run_began_with_are_not_needed_any_more(cfg, tmp_path, capsys):
    """Nor their name, as long as what is named has the sizes."""
    names = [f"{tmp_path}/{name}.bin" for name in ("old", "new", "smaller")]
    llmc.write_model(names[0], tiny.MODEL, initialize(tiny.MODEL, seed=1))
    train.main(dataclasses.replace(cfg, model=names[0]))
    Path(names[0]).rename(names[1])
    again = dataclasses.replace(cfg, resume=True, max_steps=8)
    train.main(dataclasses.replace(again, model=names[0]))
    assert "resuming with --model" not in capsys.readouterr().out
    train.main(dataclasses.replace(again, model=names[1], max_steps=10))
    screen = capsys.readouterr().out
    assert f"resuming with --model was {names[0]} and is now {names[1]}" in screen
    assert [m["step"] for m in log(cfg) if "train_loss" in m] == list(range(10))
    smaller = dataclasses.replace(tiny.MODEL, L=1)
    llmc.write_model(names[2], smaller, initialize(smaller, seed=1))
    with pytest.raises(BadInput, match=r"smaller\.bin is not what .* \(L 2 .*; now L 1 .*\); name"):
        train.main(dataclasses.replace(again, model=names[2]))
    with pytest.raises(BadInput, match=r"misspelt\.bin: there is no such file"):
        train.main(dataclasses.replace(again, model=f"{tmp_path}/misspelt.bin"))


def test_the_folder_of_hugging_face_a_run_began_with_is_not_needed_any_more(cfg, tmp_path):
    """Nor is it asked for on the Hub."""
    huggingface.write_model(tmp_path / "hf", tiny.MODEL, initialize(tiny.MODEL, seed=1))
    cfg = dataclasses.replace(cfg, model=f"hf:{tmp_path}/hf")
    train.main(cfg)
    shutil.rmtree(tmp_path / "hf")
    train.main(dataclasses.replace(cfg, resume=True))


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


def test_the_logs_of_a_run_without_a_checkpoint_are_kept(tmp_path, capsys):
    """Which may be another run: nothing says with what options they were made."""
    run = RunDir(tmp_path)
    for number in ("first", "second"):
        run.main_log.write_text(f"{number}\n")
        run.metrics.write_text("")
        start, _ = find_start(
            Checkpointer(run.checkpoints), tiny.config(output_dir=f"{tmp_path}"), {}, None
        )
        assert start == Start(0, False) and not run.main_log.exists()
    assert (tmp_path / "main.log.earlier").read_text() == "first\n"
    assert (tmp_path / "main.log.earlier1").read_text() == "second\n"
    told = f"{tmp_path} has no checkpoint, so the run begins anew; main.log is now {tmp_path}/main"
    assert capsys.readouterr().out.startswith(told)


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


def test_a_total_batch_size_that_nobody_gave_is_explained(copied):
    """It follows from the batch size and the devices. What is said to keep it does."""
    larger = dataclasses.replace(copied, batch_size=4)
    told = r"was 32 and is now 64\); .* micro-batch on each device; --total_batch_size=32 keeps it"
    with pytest.raises(BadInput, match=told):
        train.main(larger)
    train.main(dataclasses.replace(larger, total_batch_size=32, batch_size=1))
    with pytest.raises(BadInput, match=r"was 32 and is now 128\); give .* --output_dir\.$"):
        train.main(dataclasses.replace(copied, total_batch_size=128))


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
        (dict(init_from="/nowhere", resume=True), "--init_from=/nowhere is neither the directory"),
        (dict(init_from="{folder}/2"), "/2 is neither the directory of a run with a checkpoint"),
        (dict(model="other"), "has L 2, NH 3, C 48, V 90 and --model=other has L 1, NH 3.*=tiny"),
    ],
)
def test_init_from_refuses(cfg, trained, tmp_path, monkeypatch, options, message):
    monkeypatch.setitem(config.MODELS, "other", dataclasses.replace(tiny.MODEL, L=1))
    (tmp_path / "2").mkdir()
    (tmp_path / "00000002").symlink_to(folder_of(trained, 2))
    options = dict(init_from=trained.output_dir) | options
    options["init_from"] = options["init_from"].format(folder=tmp_path)
    with pytest.raises(BadInput, match=message):
        train.main(dataclasses.replace(cfg, **options))
    assert not Path(cfg.output_dir).exists()


def test_a_run_of_sizes_without_a_name_is_exported(cfg, trained, monkeypatch):
    """To begin with its weights: with --init_from the file that names the sizes cannot be given."""
    monkeypatch.delitem(config.MODELS, "tiny")
    cfg = dataclasses.replace(cfg, model="d6", init_from=trained.output_dir)
    with pytest.raises(BadInput, match=r"export, and give --model=FILE without --init_from"):
        train.main(cfg)


def test_weights_are_named_once(cfg, tmp_path):
    """And a run that names them twice is refused before it has a directory."""
    file = tmp_path / "model.bin"
    llmc.write_model(file, tiny.MODEL, initialize(tiny.MODEL, seed=1))
    with pytest.raises(BadInput, match="both name weights; give one"):
        train.main(dataclasses.replace(cfg, model=str(file), init_from="elsewhere"))
    assert not Path(cfg.output_dir).exists()
