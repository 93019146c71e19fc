"""The program evaluate: its numbers, its file, and what it refuses."""

import dataclasses
import json
import math
import os
import re
import signal
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from llmc_jax import config, evaluate, ops, train
from llmc_jax.config import BadInput, ModelConfig, RunStopped
from llmc_jax.data.tokenizer import EOT, tokenizer
from llmc_jax.data.tokens import read_shard, write_shard
from llmc_jax.evaluate import EvaluateConfig
from llmc_jax.interop import llmc
from llmc_jax.interop.llmc_text import Example, write_eval
from llmc_jax.models import gpt2
from llmc_jax.training import placement
from llmc_jax.training.logger import read_metrics
from tests import quick, tiny

QUESTIONS = Path(__file__).parent / "evaluation"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data, questions, a run of the tiny model with a checkpoint, and its model file."""
    folder = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(config.MODELS, "tiny", tiny.MODEL)
        data = tiny.write_data(folder)
        train.main(tiny.config(**data, output_dir=f"{folder}/run", val_every=0, checkpoint_every=6))
    tokens = tiny.tokens(2000, seed=3).tolist()
    starts = range(0, 1980, 66)
    write_eval(
        folder / "questions.bin",
        [Example(tokens[i : i + 20], [tokens[i + 20 : i + 25], [7, 3]], i % 2) for i in starts],
    )
    return folder


def results(folder, **options) -> dict:
    output = folder / "results.json"
    options = dict(run=f"{folder}/run", output=f"{output}", overwrite=True) | options
    evaluate.main(EvaluateConfig(**options))
    return json.loads(output.read_text())


def test_the_loss_of_a_whole_split(folder, capsys):
    """Every token but the first of each shard, however many rows the last batch has."""
    got = results(folder, batch_size=3)
    assert got["step"] == 6 and got["sequence_length"] == 16 and got["dtype"] == "float32"
    loss = got["tasks"]["loss"]
    assert loss["tokens"] == 999  # 62 rows of 16 and one of 7
    assert loss["perplexity"] == pytest.approx(math.exp(loss["loss"]))
    assert loss["bits_per_byte"] is None  # the tiny model's tokens are not GPT-2's
    assert f"loss      {loss['loss']:.6f}, perplexity" in capsys.readouterr().out

    chosen, _ = ops.select("jnp", "cpu")
    trained = evaluate.open_by_flags(EvaluateConfig(run=f"{folder}/run")).trained
    tokens = np.asarray(read_shard(folder / "val.bin"), np.int32)
    forward = quick.jit(partial(gpt2.forward, chosen, cfg=tiny.MODEL))
    losses = []
    for row in (tokens[:992].reshape(62, 16), tokens[None, 992:-1]):
        end = tokens[1:993].reshape(62, 16) if len(row) > 1 else tokens[None, 993:]
        losses.append(np.asarray(forward(trained.params, row, end, None)[0]).ravel())
    assert loss["loss"] == pytest.approx(np.concatenate(losses).mean(), abs=1e-5)


def test_batches_are_training_validations(folder, monkeypatch):
    """The first N batches have the loss that training logs of as many."""
    monkeypatch.setitem(config.MODELS, "tiny", tiny.MODEL)
    data = {key: f"{folder}/{key.removesuffix('_data')}*.bin" for key in ("train_data", "val_data")}
    out = f"{folder}/other"
    train.main(tiny.config(**data, output_dir=out, checkpoint_every=6, val_batches=4))
    logged = read_metrics(Path(out, "metrics.jsonl"))
    wanted = [line["val_loss"] for line in logged if "val_loss" in line][-1]
    got = results(folder, run=out, batch_size=2, val_batches=4)["tasks"]["loss"]
    assert got["tokens"] == 4 * 2 * 16 and got["loss"] == pytest.approx(wanted, abs=1e-6)


def test_batches_pass_over_what_training_passes_over(folder, monkeypatch):
    """What is left at a shard's end; more batches than there are."""
    monkeypatch.setitem(config.MODELS, "tiny", tiny.MODEL)
    write_shard(folder / "short_0.bin", tiny.tokens(51, seed=6))
    write_shard(folder / "short_1.bin", tiny.tokens(70, seed=7))
    data = dict(train_data=f"{folder}/train*.bin", val_data=f"{folder}/short_*.bin")
    options = dict(max_steps=1, val_batches=99, checkpoint_every=1)
    train.main(tiny.config(**data, output_dir=f"{folder}/short", **options))
    logged = read_metrics(folder / "short" / "metrics.jsonl")
    wanted = [line["val_loss"] for line in logged if "val_loss" in line][-1]
    got = results(folder, run=f"{folder}/short", batch_size=2, val_batches=99)["tasks"]["loss"]
    assert got["tokens"] == (3 + 4) * 16 and got["loss"] == pytest.approx(wanted, abs=1e-6)
    write_shard(folder / "short_0.bin", tiny.tokens(16))
    with pytest.raises(BadInput, match="holds no sequence of 16 tokens and one more; leave out"):
        results(folder, val_data=f"{folder}/short_0.bin", val_batches=1)


def test_weights_of_the_runs_data_change_nothing(folder):
    """Training mixes by them; here every token counts once."""
    write_shard(folder / "few.bin", tiny.tokens(100, seed=5))
    plain, weighted = (
        f"{folder}/few.bin{a},{folder}/val.bin{b}" for a, b in (("", ""), (":2", ":1"))
    )
    wanted = results(folder, val_data=plain)["tasks"]
    assert wanted["loss"]["tokens"] == 99 + 999
    assert results(folder, val_data=weighted)["tasks"] == wanted
    with pytest.raises(BadInput, match="has weights for some globs only"):
        results(folder, val_data=f"{folder}/few.bin:2,{folder}/val.bin")


def test_questions_do_not_depend_on_the_batch(folder, capsys):
    options = dict(tasks="hellaswag", hellaswag=f"{folder}/questions.bin", details=True)
    options |= dict(sequence_length=32)
    one, many = (results(folder, batch_size=n, **options)["tasks"]["hellaswag"] for n in (1, 64))
    assert one["questions"] == 30 and one["contexts_cut"] == 0
    assert {k: v for k, v in one.items() if k != "details"} == {
        k: v for k, v in many.items() if k != "details"
    }
    for a, b in zip(one["details"], many["details"], strict=True):
        assert (a["choice"], a["choice_norm"]) == (b["choice"], b["choice_norm"])
        np.testing.assert_allclose(a["sums"], b["sums"], atol=1e-4)
    line = r"hellaswag acc 0\.\d{4} \+- 0\.\d{4}, acc_norm .* 30 questions\n"
    assert re.search(line, capsys.readouterr().out)


def test_contexts_are_cut_and_counted(folder, capsys):
    """At the run's 16 tokens, 12 are left of 20; as if the file had had no more."""
    got = results(folder, hellaswag=f"{folder}/questions.bin", tasks="hellaswag", limit=5)
    assert got["tasks"]["hellaswag"]["contexts_cut"] == got["tasks"]["hellaswag"]["questions"] == 5
    assert "5 with the beginning of the context cut off" in capsys.readouterr().out


def test_bits_per_byte(tmp_path):
    """The bytes are those of the text; the end of a text has none. Questions of text beside it."""
    model = ModelConfig(L=1, NH=1, C=16, maxT=64)
    params = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), gpt2.shapes(model))
    llmc.write_model(tmp_path / "model.bin", model, params)
    text = "Zwei Männer kämpfen mit dem Klavier."
    write_shard(tmp_path / "val.bin", [EOT, *tokenizer().encode_ordinary(text), EOT])
    got = results(
        tmp_path, run="", model=f"{tmp_path}/model.bin", val_data=f"{tmp_path}/val.bin",
        mmlu=f"{QUESTIONS}/questions.csv", batch_size=2,
    )["tasks"]  # fmt: skip
    # All weights are 0: each token has the probability 1 / V.
    tokens, size = len(tokenizer().encode_ordinary(text)) + 1, len(text.encode())
    assert got["loss"]["tokens"] == tokens and got["loss"]["bytes"] == size
    assert got["loss"]["loss"] == pytest.approx(math.log(model.V), rel=1e-5)
    assert got["loss"]["bits_per_byte"] == pytest.approx(tokens * math.log2(model.V) / size)
    assert got["mmlu"]["questions"] == 8


def test_what_is_not_given_is_downloaded(folder, monkeypatch, tmp_path):
    def fetch(where):
        assert where == tmp_path
        return f"{folder}/questions.bin"

    monkeypatch.setitem(evaluate.FETCH, "hellaswag", fetch)
    got = results(folder, tasks="hellaswag", data_dir=f"{tmp_path}", limit=2)
    assert got["tasks"]["hellaswag"]["questions"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(run=""), "--run is needed"),
        (dict(run="/nowhere"), "--run=/nowhere is no directory"),
        (dict(model="d12"), "--run and --model both name a model"),
        (dict(run="", model="d12"), "--model=d12 has no weights"),
        (dict(step=5), "--step=5 was not saved; .* has 6"),
        (dict(tasks="loss,arc"), "--tasks has 'arc'; the tasks are loss, hellaswag, mmlu"),
        (dict(tasks="loss", mmlu="x.csv"), "--mmlu is given, but --tasks=loss has no mmlu"),
        (dict(hellaswag="/nowhere.jsonl"), "--hellaswag=/nowhere.jsonl matches no file"),
        (dict(val_data="/nowhere.bin"), "--val_data=/nowhere.bin matches no file"),
        (dict(val_batches=0), "--val_batches=0 is no batch"),
        (dict(sequence_length=33), "--sequence_length=33 must be from 1 to 32"),
        (dict(details=True), "--details needs --output"),
        (dict(output="/nowhere/x.json"), "--output=/nowhere/x.json is in no directory"),
        (dict(output=".", overwrite=True), "--output=. is a directory; name a file"),
        (dict(output="/"), "--output=/ is a directory; name a file"),
        (dict(output=__file__), "--output=.* exists; add --overwrite"),
        (dict(output=f"{__file__}/x"), "--output=.*/x cannot be written: Not a directory; name an"),
    ],
)
def test_bad_input(folder, options, message):
    with pytest.raises(BadInput, match=message):
        evaluate.main(EvaluateConfig(**(dict(run=f"{folder}/run") | options)))


def test_a_batch_may_be_larger_than_all_there_is(folder):
    write_shard(folder / "few.bin", tiny.tokens(100, seed=5))
    options = dict(val_data=f"{folder}/few.bin", batch_size=10**15, val_batches=10**15)
    assert results(folder, **options)["tasks"]["loss"]["tokens"] == 96


def test_want_of_memory_is_said(folder, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(evaluate, "evaluate_text", fail)
    with pytest.raises(RunStopped, match="memory is not enough for --batch_size=7; lower it"):
        results(folder, batch_size=7)


def test_what_is_finished_is_written(folder, tmp_path, monkeypatch):
    """Where a later task fails; --overwrite is for what was there before."""
    options = dict(run=f"{folder}/run", hellaswag=f"{folder}/questions.bin", limit=2)
    cfg = EvaluateConfig(**options, output=f"{tmp_path}/a.json")
    evaluate.main(cfg)
    whole = json.loads((tmp_path / "a.json").read_text())
    assert list(whole["tasks"]) == ["loss", "hellaswag"]

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(evaluate, "evaluate_questions", fail)
    with pytest.raises(RunStopped):
        evaluate.main(dataclasses.replace(cfg, output=f"{tmp_path}/b.json"))
    del whole["tasks"]["hellaswag"]
    assert json.loads((tmp_path / "b.json").read_text()) == whole


def test_tokens_of_another_vocabulary_are_refused(folder):
    write_shard(folder / "large.bin", np.full(40, 90))
    with pytest.raises(BadInput, match=r"large\.bin has token 90 near position 0, .* ends at 89"):
        results(folder, val_data=f"{folder}/large.bin")
    write_shard(folder / "one.bin", np.full(1, 3))
    with pytest.raises(BadInput, match=r"--val_data=.*one\.bin holds no two tokens"):
        results(folder, val_data=f"{folder}/one.bin")


def test_training_evaluates_after_each_validation_but_the_first(folder, monkeypatch):
    """In llm.c's line, with the numbers of the program; a resumed run has each line once."""
    monkeypatch.setitem(config.MODELS, "tiny", tiny.MODEL)
    data = {key: f"{folder}/{key.removesuffix('_data')}*.bin" for key in ("train_data", "val_data")}
    cfg = tiny.config(**data, output_dir=f"{folder}/hellaswag", checkpoint_every=3)
    cfg = dataclasses.replace(cfg, hellaswag=f"{folder}/questions.bin")
    train.main(cfg)
    log = Path(cfg.output_dir, "main.log").read_text()
    lines = [line for line in log.splitlines() if "eval" in line]
    assert [re.sub(r"\d\.\d{4}", "F", line) for line in lines] == ["s:3 eval:F", "s:6 eval:F"]
    metrics = read_metrics(Path(cfg.output_dir, "metrics.jsonl"))
    logged = [m for m in metrics if "hellaswag_acc" in m]
    assert [m["step"] for m in logged] == [3, 6]
    options = dict(tasks="hellaswag", hellaswag=cfg.hellaswag)
    got = results(folder, run=cfg.output_dir, **options)["tasks"]["hellaswag"]
    assert logged[-1]["hellaswag_acc_norm"] == got["acc_norm"]
    assert logged[-1]["hellaswag_acc"] == got["acc"]
    train.main(dataclasses.replace(cfg, resume=True, resume_step=3))
    assert Path(cfg.output_dir, "main.log").read_text() == log


def test_a_signal_ends_hellaswag_after_its_batch(folder, monkeypatch, capsys):
    """It is left out of the logs, and made by the run that goes on."""
    monkeypatch.setitem(config.MODELS, "tiny", tiny.MODEL)
    data = {key: f"{folder}/{key.removesuffix('_data')}*.bin" for key in ("train_data", "val_data")}
    cfg = tiny.config(**data, output_dir=f"{folder}/ended", hellaswag=f"{folder}/questions.bin")
    calls, real = [], placement.to_host

    def to_host(results):  # the scorer's, of a batch
        calls.append(results)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(results)

    monkeypatch.setattr(placement, "to_host", to_host)
    train.main(cfg)
    assert "stopped by SIGTERM after step 3/6: checkpoint of" in capsys.readouterr().out
    assert len(calls) == 1
    train.main(dataclasses.replace(cfg, resume=True))
    metrics = read_metrics(Path(cfg.output_dir, "metrics.jsonl"))
    assert [m["step"] for m in metrics if "hellaswag_acc" in m] == [3, 6]
    assert [m["step"] for m in metrics if "val_loss" in m] == [0, 3, 6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(hellaswag="/nowhere.bin"), "--hellaswag=/nowhere.bin matches no file"),
        (dict(hellaswag="x.bin", val_every=0), "--hellaswag is evaluated after validations"),
    ],
)
def test_training_refuses_bad_questions_before_it_begins(folder, monkeypatch, options, message):
    monkeypatch.setitem(config.MODELS, "tiny", tiny.MODEL)
    data = {key: f"{folder}/{key.removesuffix('_data')}*.bin" for key in ("train_data", "val_data")}
    with pytest.raises(BadInput, match=message):
        train.main(tiny.config(**(data | dict(output_dir=f"{folder}/none") | options)))
    assert not (folder / "none").exists()
