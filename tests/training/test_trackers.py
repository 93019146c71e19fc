"""TensorBoard and Weights & Biases get what metrics.jsonl gets: each step once, over resumes."""

import dataclasses
import importlib.util
import json
import shutil
import time

import pytest

from llmc_jax import config, train
from llmc_jax.config import BadInput
from llmc_jax.training import manifest, trackers
from llmc_jax.training.logger import Logger, read_metrics
from llmc_jax.training.run_dir import RunDir
from tests import tiny


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    monkeypatch.setitem(config.MODELS, "tiny", tiny.MODEL)
    return tiny.config(**tiny.write_data(tmp_path), output_dir=f"{tmp_path}/run")


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    return RunDir(tmp_path / "run")


def log(logger: Logger, *steps: int) -> None:
    for step in steps:
        logger._write(f"s:{step} trl:1", step=step, train_loss=10.0 - step, grad_norm=1.0)


def scalars(run: RunDir) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself shows: name -> [(step, value)]."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run.tensorboard))
    events.Reload()
    return {
        name: [(event.step, round(event.value, 4)) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def validate_again(checkpoint) -> None:
    """Make a checkpoint one of a run that was stopped before it validated."""
    record = json.loads((checkpoint / "run.json").read_text())
    (checkpoint / "run.json").write_text(json.dumps(record | dict(loop_done=False)))
    (checkpoint / "manifest.json").unlink()
    manifest.write(checkpoint, without="unfinished")


@pytest.mark.skipif(not importlib.util.find_spec("tensorboardX"), reason="no tensorboardX")
def test_a_resumed_run_has_each_step_once_in_tensorboard(cfg, monkeypatch):
    """Also where it starts again within the second."""
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now)
    train.main(dataclasses.replace(cfg, tensorboard=True, checkpoint_every=3))
    run = RunDir(trackers.Path(cfg.output_dir))
    whole = scalars(run)
    assert [step for step, _ in whole["train_loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in whole["val_loss"]] == [0, 3, 6]
    logged = read_metrics(run.metrics)
    assert whole["val_loss"][-1][1] == pytest.approx(logged[-1]["val_loss"], abs=1e-4)
    assert {"learning_rate", "grad_norm", "tokens_per_s"} < whole.keys()
    for prepare in (lambda _: None, validate_again):
        shutil.rmtree(run.checkpoints / "00000006")  # killed before the last save
        prepare(run.checkpoints / "00000003")
        train.main(dataclasses.replace(cfg, tensorboard=True, checkpoint_every=3, resume=True))
        again = scalars(run)
        for name in ("train_loss", "val_loss", "grad_norm"):
            assert again[name] == whole[name]


@pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="no wandb")
def test_weights_and_biases_gets_each_step_once(run, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logs = []

    def start(start: int, *steps: int) -> None:
        tracker = trackers.WeightsAndBiases(run, dict(model="tiny"))
        logs.append((tracker._run.id, []))
        send = tracker._run.log
        tracker._run.log = lambda data, step: (logs[-1][1].append((step, data)), send(data, step))
        with Logger(run, start, [tracker]) as logger:
            log(logger, *steps)

    start(0, 0, 1, 2)
    start(2, 2, 3)  # update 2 is made again: Weights & Biases has it
    assert logs[0][0] == logs[1][0] == json.loads((run.root / "wandb.json").read_text())["id"]
    assert [step for step, _ in logs[0][1]] == [1, 2, 3] and [step for step, _ in logs[1][1]] == [4]
    assert logs[1][1][0][1] == dict(train_loss=7.0, grad_norm=1.0)
    files = list((run.root / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2 and all(file.stat().st_size for file in files)


@pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="no wandb")
def test_a_run_goes_on_where_weights_and_biases_cannot_be_reached(run, monkeypatch, capsys):
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    init = wandb.init

    def unreachable(**options):
        if options.get("mode") != "offline":
            raise wandb.errors.CommError("Run initialization has timed out after 30.0 sec.")
        return init(**options)

    monkeypatch.setattr(wandb, "init", unreachable)
    with Logger(run, 0, [trackers.WeightsAndBiases(run, {})]) as logger:
        log(logger, 0)
    said = capsys.readouterr().out
    assert "timed out after 30.0 sec. The run goes on; later, wandb sync" in said
    assert list((run.root / "wandb").glob("offline-run-*"))


def test_a_process_that_writes_nothing_has_no_trackers(cfg):
    cfg = dataclasses.replace(cfg, tensorboard=True, wandb=True)
    assert trackers.open_trackers(cfg, None, 0, loop_done=True) == []


def test_a_tracker_that_fails_gets_no_more_and_the_run_goes_on(run, capsys):
    class Failing:
        calls = 0

        def write(self, metrics):
            self.calls += 1
            raise OSError("disk full")

        def close(self):
            raise AssertionError("it was let go")

    failing = Failing()
    with Logger(run, 0, [failing]) as logger:
        log(logger, 0, 1)
    assert failing.calls == 1 and len(read_metrics(run.metrics)) == 2
    assert "no more goes to Failing: OSError: disk full" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "tracker"), [("tensorboard", "TensorBoard"), ("wandb", "WeightsAndBiases")]
)
def test_a_tracker_that_cannot_begin_is_left_out(cfg, run, monkeypatch, capsys, flag, tracker):
    def fail(*_, **__):
        raise NotADirectoryError("a file is there")

    monkeypatch.setattr(trackers, tracker, fail)
    cfg = dataclasses.replace(cfg, **{flag: True})
    assert trackers.open_trackers(cfg, run, 0, loop_done=True) == []
    told = f"--{flag} gets nothing: NotADirectoryError: a file is there\n"
    assert capsys.readouterr().out == told


@pytest.mark.parametrize("flag", ["tensorboard", "wandb"])
def test_what_is_missing_is_said_before_anything_is_written(cfg, tmp_path, monkeypatch, flag):
    monkeypatch.setitem(trackers.PACKAGES, flag, "no_such_package")
    with pytest.raises(BadInput, match=rf"--{flag} needs the package .*pip install -e .\[{flag}\]"):
        train.main(dataclasses.replace(cfg, **{flag: True}))
    with pytest.raises(BadInput, match=f"--{flag} needs --output_dir"):
        train.main(dataclasses.replace(cfg, output_dir="", **{flag: True}))
    assert not (tmp_path / "run").exists()
