"""A whole run of the tiny model: files, resume bit for bit, sampling, what the screen shows."""

import dataclasses
import itertools
import json
import re
import shutil
import time
from pathlib import Path

import pytest

from llmc_jax import banner, config, milestones, train
from llmc_jax.config import BadInput
from llmc_jax.training.logger import read_metrics
from llmc_jax.training.run_dir import RunDir
from tests import tiny


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch):
    """--model=tiny."""
    monkeypatch.setitem(config.MODELS, "tiny", tiny.MODEL)


@pytest.fixture
def cfg(tmp_path):
    return tiny.config(**tiny.write_data(tmp_path), output_dir=f"{tmp_path}/run")


def losses(run: RunDir) -> list[tuple]:
    """What must be equal between runs: everything in metrics.jsonl but the clock."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [tuple(sorted((k, v) for k, v in m.items() if not k.endswith("_s"))) for m in lines]


def test_a_run_learns_and_leaves_its_files(cfg, tmp_path, capsys):
    train.main(
        dataclasses.replace(cfg, batch_size=16, max_steps=90, val_every=30, checkpoint_every=45)
    )
    run = RunDir(tmp_path / "run")
    metrics = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    val = [m["val_loss"] for m in metrics if "val_loss" in m]
    assert [m["step"] for m in metrics if "val_loss" in m] == [0, 30, 60, 90]
    assert val[0] == pytest.approx(4.5, abs=0.3)  # log(90): nothing learned yet
    assert val[-1] < 2.5
    assert run.picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["00000045", "00000090"]
    train_line = next(m for m in metrics if "train_loss" in m)
    assert train_line.keys() == {
        "step", "train_loss", "grad_norm", "learning_rate", "step_time_s", "data_wait_s",
        "tokens_per_s", "tokens",
    }  # fmt: skip
    assert train_line["tokens"] == 256 and train_line["step_time_s"] > 0
    assert train_line["tokens_per_s"] == pytest.approx(256 / train_line["step_time_s"])
    screen = capsys.readouterr().out
    for path in (run.checkpoints / "00000090", run.main_log, run.picture):
        assert str(path) in screen
    assert f"--run={run.root}" in screen and "layernorm ffi" in screen


def test_a_wait_for_a_batch_is_on_the_line_of_the_time_that_it_is_part_of(cfg, monkeypatch):
    """Which is that of the step before, where one is under way. (Steps take some milliseconds.)"""
    real, calls = train.train_batch, itertools.count()

    def slow(batches):
        batch, _ = real(batches)
        waited = 0.5 if next(calls) in (0, 2, 4) else 0.0
        time.sleep(waited)
        return batch, waited

    monkeypatch.setattr(train, "train_batch", slow)
    train.main(dataclasses.replace(cfg, val_every=4))
    lines = read_metrics(RunDir(Path(cfg.output_dir)).metrics)
    lines = [line for line in lines if "train_loss" in line]
    # 0 and 4 are the first since a validation
    assert [line["data_wait_s"] for line in lines] == [0.5, 0.5, 0, 0, 0.5, 0]
    assert all(line["step_time_s"] > line["data_wait_s"] for line in lines)
    assert lines[2]["step_time_s"] < 0.5


def test_main_log_is_in_llm_cs_format(cfg, tmp_path):
    train.main(cfg)
    lines = (tmp_path / "run" / "main.log").read_text().splitlines()
    kinds = [
        "train" if re.fullmatch(r"s:\d+ trl:\d+\.\d{4} lr:\d\.\d{6} norm:\d+\.\d{2}", line)
        else "val" if re.fullmatch(r"s:\d+ tel:\d+\.\d{4}", line) else line
        for line in lines
    ]  # fmt: skip
    assert kinds == ["val", *["train"] * 3, "val", *["train"] * 3, "val"]
    assert [line.split()[0] for line in lines if "tel" in line] == ["s:0", "s:3", "s:6"]
    assert [line.split()[0] for line in lines if "trl" in line] == [f"s:{n}" for n in range(6)]


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(dtype="bfloat16", total_batch_size=64, val_every=4),  # made before the checkpoint
        dict(shuffle=False, max_steps=8, val_every=0),
        dict(train_data="train_0.bin:3,train_1.bin:1", max_steps=8),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(cfg, tmp_path, monkeypatch, options):
    """Bit for bit: losses, norms, rates and validation, across a checkpoint in the middle.

    The interrupted run went on past its last checkpoint: what it logged there is taken back.
    """
    monkeypatch.chdir(tmp_path)
    cfg = dataclasses.replace(cfg, checkpoint_every=4, **options)
    train.main(cfg)
    whole = RunDir(tmp_path / "run")
    resumed = RunDir(tmp_path / "resumed")
    shutil.copytree(whole.root, resumed.root)
    for step in whole.checkpoints.iterdir():
        if int(step.name) > 4:
            shutil.rmtree(resumed.checkpoints / step.name)
    train.main(dataclasses.replace(cfg, output_dir=str(resumed.root), resume=True))
    assert losses(resumed) == losses(whole)
    assert resumed.main_log.read_text() == whole.main_log.read_text()
    assert sorted(p.name for p in resumed.checkpoints.iterdir()) == sorted(
        p.name for p in whole.checkpoints.iterdir()
    )


def test_resume_of_a_finished_run_changes_nothing(cfg, tmp_path, capsys):
    cfg = dataclasses.replace(cfg, checkpoint_every=6)
    train.main(cfg)
    before = losses(RunDir(tmp_path / "run"))
    train.main(dataclasses.replace(cfg, resume=True))
    assert losses(RunDir(tmp_path / "run")) == before
    assert "already trained to step 6" in capsys.readouterr().out


def test_no_steps_and_long_warm_up_and_nothing_kept_are_said(cfg, capsys):
    train.main(dataclasses.replace(cfg, max_steps=0, val_every=0, output_dir=""))
    screen = capsys.readouterr().out
    assert screen.endswith("--max_steps=0 asks for no step; nothing to do\n")
    assert "nothing of this run is kept: --output_dir=DIRECTORY keeps its logs" in screen
    assert "cosine from 0.01 to 0.001 after 2 of warm-up" in screen
    assert banner.curve(dataclasses.replace(cfg, lr_schedule="constant")) == "constant at 0.01"
    assert banner.remarks(dataclasses.replace(cfg, checkpoint_every=1)) == []
    warm, kept = banner.remarks(dataclasses.replace(cfg, max_steps=4, warmup_steps=100))
    assert warm.startswith("the learning rate gets to 4% of --learning_rate=0.01: --warmup_steps=1")
    assert kept.startswith("no checkpoint is kept, unless a signal ends the run: --checkpoint_ev")


def test_resume_without_a_run_starts_one(cfg, tmp_path):
    train.main(dataclasses.replace(cfg, resume=True))
    assert len(losses(RunDir(tmp_path / "run"))) == 9


def test_another_run_in_the_directory_is_left_alone(cfg, tmp_path):
    train.main(cfg)
    before = losses(RunDir(tmp_path / "run"))
    with pytest.raises(BadInput, match=r"--output_dir=.* already holds a run; add --resume"):
        train.main(dataclasses.replace(cfg, max_steps=3))
    assert losses(RunDir(tmp_path / "run")) == before


def test_what_is_no_directory_of_checkpoints_is_left_alone(cfg, tmp_path):
    """And the logs beside it, which a run that begins anew would cut."""
    train.main(cfg)
    before = losses(RunDir(tmp_path / "run"))
    (tmp_path / "run" / "checkpoints").write_text("elsewhere")
    with pytest.raises(BadInput, match=r"run/checkpoints is no directory; remove it, or name"):
        train.main(dataclasses.replace(cfg, resume=True))
    assert losses(RunDir(tmp_path / "run")) == before


def test_a_resume_with_other_options_names_them(cfg, tmp_path):
    cfg = dataclasses.replace(cfg, checkpoint_every=6)
    train.main(cfg)
    before = losses(RunDir(tmp_path / "run"))
    other = dataclasses.replace(cfg, resume=True, learning_rate=5e-3, dtype="bfloat16")
    with pytest.raises(BadInput) as error:
        train.main(other)
    assert "--learning_rate was 0.01 and is now 0.005" in str(error.value)
    assert "--dtype was float32 and is now bfloat16" in str(error.value)
    assert losses(RunDir(tmp_path / "run")) == before
    # how often something is done is not what the run is
    train.main(dataclasses.replace(cfg, resume=True, val_every=2, sample_every=0))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.bin", r"--model=.*none\.bin: there is no such file or directory"),
        ("", "is a directory; .* --model=hf:.*, and from a run one starts with --init_from="),
    ],
)
def test_a_model_that_is_none_is_named_with_what_to_write(cfg, tmp_path, name, message):
    with pytest.raises(BadInput, match=message):
        train.main(dataclasses.replace(cfg, model=f"{tmp_path}/{name}"))


def test_another_seed_is_other_weights_and_another_order(cfg, tmp_path):
    """Before the first step the validation loss is of the weights alone; of runs that begin with
    the same ones, the first step's loss is of the order."""

    def first(name: str, **options) -> tuple[float, float]:
        run = dataclasses.replace(cfg, output_dir=f"{tmp_path}/{name}", max_steps=1, **options)
        train.main(dataclasses.replace(run, checkpoint_every=1))
        lines = read_metrics(RunDir(tmp_path / name).metrics)
        return lines[0]["val_loss"], lines[1]["train_loss"]

    drawn = [first(f"drawn{seed}", seed=seed) for seed in (42, 43)]
    assert drawn[0][0] != drawn[1][0]
    given = [first(f"given{s}", seed=s, init_from=f"{tmp_path}/drawn42") for s in (42, 43)]
    assert given[0][0] == given[1][0] and given[0][1] != given[1][1]


def test_overfitting_a_single_batch(cfg, tmp_path):
    train.main(dataclasses.replace(cfg, overfit_single_batch=True, max_steps=80, val_every=0))
    values = [dict(m)["train_loss"] for m in losses(RunDir(tmp_path / "run"))]
    assert values[-1] < 0.1 < values[0]


def test_without_an_output_directory_nothing_is_written(cfg, tmp_path):
    before = sorted(tmp_path.iterdir())
    train.main(dataclasses.replace(cfg, output_dir=""))
    assert sorted(tmp_path.iterdir()) == before


def test_max_steps_defaults_to_one_epoch(cfg, tmp_path):
    train.main(dataclasses.replace(cfg, max_steps=-1, total_batch_size=640, val_every=0))
    # 4000 and 2000 tokens: 249 + 124 sequences of 16, in steps of 40
    assert len(losses(RunDir(tmp_path / "run"))) == 373 // 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(adam_eps=0.0), "--adam_eps=0.0 must be above 0: .* the usual is 1e-08"),
        (dict(adam_eps=1e-50), "--adam_eps=1e-50 must be above 0"),
        (dict(adam_eps=float("nan")), "--adam_eps=nan must be finite"),
        (dict(adam_eps=1e300), r"--adam_eps=1e\+300 must be finite in float32"),
        (dict(adam_beta1=1e300), r"--adam_beta1=1e\+300 must be from 0 to below 1"),
        (dict(grad_clip=1e-60), "--grad_clip=1e-60 is 0 in float32, .* is 1.0, and 0 is no clip"),
        (dict(total_batch_size=2**36), r"=68719476736 is 2147483648 micro-batches of 32 tokens; "),
        (dict(adam_beta1=1.0), "--adam_beta1=1.0 must be from 0 to below 1"),
        (dict(adam_beta2=0.9999999999), "--adam_beta2=0.9999999999 must be .* usual is 0.95"),
        (dict(val_batches=0), "--val_batches=0 is no validation; give --val_every=0"),
        (dict(learning_rate=float("inf")), "--learning_rate=inf must be finite"),
        (dict(weight_decay=float("nan")), "--weight_decay=nan must be finite"),
        (dict(learning_rate=1e39), r"--learning_rate=1e\+39 must be finite in float32"),
        (dict(max_steps=2**31), "--max_steps=2147483648 must be below 2147483648"),
        (dict(warmup_steps=2**31), "--warmup_steps=2147483648 must be below"),
        (dict(schedule_steps=2**31), "--schedule_steps=2147483648 must be below"),
        (dict(devices="cpu:99999999999"), r"--devices=cpu:9+ must be cpu:N, .* \(9999 at most\)"),
        (dict(output_dir="a" * 300), "--output_dir=a+ cannot be made: File name too long"),
        (dict(seed=2**32), "--seed=4294967296 must be from 0 to 4294967295"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_numbers_that_no_training_can_be_made_with_are_refused(cfg, tmp_path, options, message):
    with pytest.raises(BadInput, match=message):
        train.main(dataclasses.replace(cfg, **options))
    assert not (tmp_path / "run").exists()


@pytest.fixture
def letters(monkeypatch):
    monkeypatch.setattr(milestones, "tokenizer", tiny.Letters)
    monkeypatch.setattr(milestones, "EOT", 0)


def test_training_samples_when_it_is_time(cfg, letters, capsys):
    train.main(dataclasses.replace(cfg, sample_every=4, sample_tokens=5))
    screen = capsys.readouterr().out
    assert re.findall(r"sample at step (\d+)", screen) == ["4", "6"]


def test_tokens_that_the_tokenizer_does_not_have_are_replaced(cfg, letters, monkeypatch, capsys):
    """The model's vocabulary is larger, as nanoGPT's is."""
    monkeypatch.setattr(tiny.Letters, "n_vocab", 1)
    train.main(dataclasses.replace(cfg, max_steps=1, sample_every=1, sample_tokens=9))
    assert re.search(r"---\n\ufffd+\n---", capsys.readouterr().out)


def test_a_model_with_another_vocabulary_has_no_samples(cfg, capsys):
    train.main(dataclasses.replace(cfg, sample_every=2))
    screen = capsys.readouterr().out
    assert screen.count("--sample_every=2: no text is generated, for the model's vocabulary") == 1
    assert "sample at step" not in screen and "trained 6 steps" in screen
