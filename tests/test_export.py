"""From any kind of model to any other, verified; and the programs that start from a file."""

import dataclasses
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llmc_jax import checkpoint, config, export, generate, train
from llmc_jax.config import BadInput
from llmc_jax.export import ExportConfig
from llmc_jax.interop import huggingface, llmc
from llmc_jax.models.initialize import initialize
from llmc_jax.trained import TrainedConfig, open_by_flags
from llmc_jax.training.logger import read_metrics
from tests import tiny
from tests.interop import test_llmc_state


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A short run of the tiny model; its data are beside it."""
    monkeypatch.setitem(config.MODELS, "tiny", tiny.MODEL)
    data = tiny.write_data(tmp_path)
    cfg = tiny.config(**data, output_dir=f"{tmp_path}/run", checkpoint_every=3)
    train.main(cfg)
    return cfg


def run(source, format, output, **options):
    export.main(ExportConfig(source=str(source), format=format, output=str(output), **options))


def same(a, b) -> bool:
    return all(
        np.array_equal(np.asarray(x, np.float32), np.asarray(y, np.float32))
        for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    )


def test_around_the_world(trained, tmp_path, capsys):
    """Run -> llm.c -> Hugging Face -> llm.c -> run -> llm.c: the same bytes, each step verified."""
    run(trained.output_dir, "llmc", tmp_path / "a.bin", verify=True)
    run(tmp_path / "a.bin", "hf", tmp_path / "hf", verify=True)
    cfg, params = huggingface.read_model(tmp_path / "hf")
    _, wanted = llmc.read_model(tmp_path / "a.bin")
    V = tiny.MODEL.V
    assert cfg.V == V and not params.wte[V:].any()
    assert same(params._replace(wte=params.wte[:V]), wanted._replace(wte=wanted.wte[:V]))
    run(tmp_path / "a.bin", "checkpoint", tmp_path / "back", verify=True)
    run(tmp_path / "back", "llmc", tmp_path / "b.bin", verify=True)
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()
    run(tmp_path / "a.bin", "llmc_bf16", tmp_path / "c.bin", verify=True)
    assert capsys.readouterr().out.count("verified: logits differ by") == 5


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
def test_a_folder_of_hugging_face_has_the_type_that_it_is_stored_in(tmp_path, stored):
    """For --dtype=auto; float16, which is none of ours, is taken as float32."""
    huggingface.write_model(tmp_path / "hf", tiny.MODEL, initialize(tiny.MODEL, seed=1))
    path = tmp_path / "hf" / "model.safetensors"
    tensors = {name: x.astype(jnp.dtype(stored)) for name, x in load_file(path).items()}
    save_file(tensors, path)
    dtype = "bfloat16" if stored == "bfloat16" else "float32"
    opened = open_by_flags(TrainedConfig(model=f"hf:{tmp_path}/hf"))
    assert opened.dtype == dtype and opened.trained.params.wte.dtype == np.float32
    wte = np.asarray(opened.trained.params.wte[: tiny.MODEL.V])
    assert np.array_equal(wte, tensors["transformer.wte.weight"].astype(np.float32))
    run(f"hf:{tmp_path}/hf", "checkpoint", tmp_path / "back", verify=True)
    assert open_by_flags(TrainedConfig(run=f"{tmp_path}/back")).dtype == dtype


def test_what_was_exported_is_the_checkpoint_that_was_asked_for(trained, tmp_path):
    run(trained.output_dir, "llmc", tmp_path / "3.bin", step=3)
    run(trained.output_dir, "llmc", tmp_path / "6.bin")
    assert (tmp_path / "3.bin").read_bytes() != (tmp_path / "6.bin").read_bytes()
    with pytest.raises(BadInput, match=r"--step=5 was not saved; .*run has 3, 6"):
        run(trained.output_dir, "llmc", tmp_path / "5.bin", step=5)


def test_a_result_that_is_not_the_source_is_found(trained, tmp_path, monkeypatch):
    write = llmc.write_model

    def write_wrongly(path, cfg, params, **options):
        write(path, cfg, params._replace(wpe=params.wpe[::-1]), **options)

    monkeypatch.setattr(llmc, "write_model", write_wrongly)
    with pytest.raises(BadInput, match="gives other logits than"):
        run(trained.output_dir, "llmc", tmp_path / "a.bin", verify=True)


def test_training_starts_from_a_file(trained, tmp_path):
    """The first validation of a run that starts from an export is the last of its source."""
    last = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["val_loss"]
    run(trained.output_dir, "llmc", tmp_path / "a.bin")
    run(trained.output_dir, "hf", tmp_path / "hf")
    for number, model in enumerate((f"{tmp_path}/a.bin", f"hf:{tmp_path}/hf")):
        output = f"{tmp_path}/again{number}"
        train.main(dataclasses.replace(trained, model=model, output_dir=output))
        first = read_metrics(tmp_path / f"again{number}" / "metrics.jsonl")[0]["val_loss"]
        assert first == pytest.approx(last, rel=1e-6)


def test_an_exported_file_is_trained_on(trained, tmp_path, capsys):
    """Its checkpoint is of step 0, and all that follows is as from --model=the file."""
    run(trained.output_dir, "llmc", tmp_path / "a.bin")
    run(tmp_path / "a.bin", "checkpoint", tmp_path / "resumed")
    capsys.readouterr()
    train.main(dataclasses.replace(trained, output_dir=f"{tmp_path}/resumed", resume=True))
    from_file = dict(model=f"{tmp_path}/a.bin", output_dir=f"{tmp_path}/from_file")
    train.main(dataclasses.replace(trained, **from_file))
    assert f"resuming {tmp_path}/resumed at step 0" in capsys.readouterr().out
    resumed, from_file = (
        [
            (m["step"], m.get("val_loss"), m.get("train_loss"))
            for m in read_metrics(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("resumed", "from_file")
    )
    last = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["val_loss"]
    assert resumed == from_file and resumed[0][1] == pytest.approx(last, rel=1e-6)


def test_a_model_of_other_sizes_than_a_descriptors_is_trained_on(
    trained, tmp_path, monkeypatch, capsys
):
    """Exported from its run: whatever file has these sizes is its --model, or had."""
    run(trained.output_dir, "llmc", tmp_path / "a.bin")
    monkeypatch.delitem(config.MODELS, "tiny")
    run(trained.output_dir, "checkpoint", tmp_path / "out", verify=True)
    assert checkpoint.main("ls", checkpoint.CheckpointConfig(run=f"{tmp_path}/out")) == 0
    assert "L 2 C 48  run exported  at unknown  complete" in capsys.readouterr().out
    cfg = dataclasses.replace(trained, output_dir=f"{tmp_path}/out", resume=True, max_steps=7)
    with pytest.raises(BadInput, match=r"--model=d6 is not what .* \(L 2 .*; now L 6 .*old sizes"):
        train.main(dataclasses.replace(cfg, model="d6"))
    shutil.copytree(tmp_path / "out", tmp_path / "again")
    train.main(dataclasses.replace(cfg, model=f"{tmp_path}/a.bin"))
    train.main(dataclasses.replace(cfg, model="gone.bin", output_dir=f"{tmp_path}/again"))
    assert (tmp_path / "again" / "main.log").read_text() == (tmp_path / "out/main.log").read_text()


def test_generation_takes_a_file(tmp_path, monkeypatch, capsys):
    """The same text from llm.c's file, from Hugging Face's folder and from a run."""
    small = config.ModelConfig(L=1, NH=2, C=16, maxT=16)
    monkeypatch.setitem(config.MODELS, "small", small)
    outputs = dict(llmc=tmp_path / "a.bin", hf=tmp_path / "hf", checkpoint=tmp_path / "run")
    for format, output in outputs.items():
        run("small", format, output)
    with pytest.raises(BadInput, match=r"--output=.*/run already holds a run; name another"):
        run("small", "checkpoint", outputs["checkpoint"])
    texts = []
    for source in (
        dict(model=f"{tmp_path}/a.bin"),
        dict(model=f"hf:{tmp_path}/hf"),
        dict(run=f"{tmp_path}/run"),
    ):
        capsys.readouterr()
        generate.main(generate.GenerateConfig(**source, tokens=5, prompt="Hello"))
        texts.append(capsys.readouterr().out)
    assert len(texts[0]) > len("Hello\n") and texts[0] == texts[1] == texts[2]
    for name, message in (
        ("small", "--model=small has no weights"),
        (f"{tmp_path}/run", "run is a directory; .* --model=hf:PATH, a run --run=PATH"),
        ("runs/nope", "--model=runs/nope is no file; write a model file"),
    ):
        with pytest.raises(BadInput, match=message):
            generate.main(generate.GenerateConfig(model=name))
    with pytest.raises(BadInput, match="--run and --model both name a model"):
        generate.main(generate.GenerateConfig(model="small", run="x"))


@pytest.fixture
def of_llm_c(tmp_path, monkeypatch):
    """A function: a run of llm.c, exported, and the options it goes on with here. One step is one
    sample, and the first shard of an epoch has more than STEP."""
    monkeypatch.setitem(config.MODELS, "tiny", tiny.MODEL)
    (tmp_path / "log").mkdir()
    trees = [test_llmc_state.random_params(seed) for seed in range(3)]
    trees[1] = jax.tree.map(np.square, trees[1])  # second moments are not negative

    def make(**options):
        options = dict(place=(0, test_llmc_state.STEP)) | options
        test_llmc_state.write_run(tmp_path / "log", trees, **options)
        run(tmp_path / "log", "checkpoint", tmp_path / "run", verify=True)
        cfg = tiny.config(
            **tiny.write_data(tmp_path), output_dir=f"{tmp_path}/run", resume=True,
            dtype="bfloat16", shuffle_order="llmc", max_steps=test_llmc_state.STEP + 2, val_every=0,
        )  # fmt: skip
        return trees, cfg

    return make


def test_a_run_of_llm_c_goes_on_here(tmp_path, of_llm_c):
    """Its moments and master weights become a checkpoint, and --resume takes it at its step."""
    trees, cfg = of_llm_c()
    source = export.read_source(ExportConfig(source=f"{tmp_path}/run"))
    assert source.step == test_llmc_state.STEP
    assert same((*source.moments, source.params), tuple(trees))
    train.main(dataclasses.replace(cfg, checkpoint_every=1))
    updates = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [m["step"] for m in updates] == [test_llmc_state.STEP, test_llmc_state.STEP + 1]
    assert updates[0]["learning_rate"] < 0.2 * cfg.learning_rate  # its end, no warm-up
    train.main(dataclasses.replace(cfg, resume_step=test_llmc_state.STEP + 1))  # a run of ours now


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        (dict(ranks=2, sharded=True), {}, "hang on --batch_size and devices, which were 2 and 2 a"),
        (dict(place=(1, 7)), {}, r"llm.c was at sample 7 of shard 1 .* be at sample 12 of shard 0"),
        (dict(shuffled=False), {}, r"\(--shuffle=False\), .* \(--shuffle=True\); give its"),
        ({}, dict(total_batch_size=64), "sample 12 of shard 0 after step 12 .* be at sample 24"),
    ],
)
def test_a_run_of_llm_c_goes_on_where_it_was(of_llm_c, was, now, message):
    """In its order or not at all; in ours it may."""
    _, cfg = of_llm_c(**was)
    with pytest.raises(BadInput, match=message):
        train.main(dataclasses.replace(cfg, **now))
    if now:
        train.main(dataclasses.replace(cfg, shuffle_order="counter", **now))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(), "--source is needed"),
        (dict(source="d6"), "--output is needed"),
        (dict(source="d6", output="x", step=3), "--step=3 is of a run's .* --source=d6 is no run"),
        (dict(source="o.bin", output="x", step=3), "--source=o.bin is no run; leave it out"),
        (dict(source="d5", output="x"), "--source=d5: there is no such file"),
        (dict(source="{tmp}", output="x"), "holds no checkpoint.* is written hf:"),
        (dict(source="{tmp}/none.bin", output="x"), r"--source=.*none\.bin: there is no such file"),
        (dict(source="runs/nope", output="x"), "--source=runs/nope: there is no such file or dir"),
        (dict(source="d6", output="{tmp}/none/x"), "--output=.*/none/x is in no directory"),
        (dict(source="d6", output="{tmp}"), "is a directory; --format=llmc writes a file"),
        (dict(source="d6", output=__file__), "--output=.*py exists; add --overwrite to replace"),
        (dict(source="d6", output="/proc/x"), "--output=/proc/x cannot be written: No such file"),
        (
            dict(source="d6", output="/proc/x/y", format="hf"),
            "--output=/proc/x/y cannot be made: No such",
        ),
        (dict(source="d6", output="/proc/x", format="checkpoint"), "--output=/proc/x cannot be ma"),
        (dict(source="d6", output=__file__, format="hf"), "is a file; --format=hf writes a direct"),
    ],
)
def test_bad_input_is_named(tmp_path, monkeypatch, options, message):
    options = {
        name: value.replace("{tmp}", str(tmp_path)) if isinstance(value, str) else value
        for name, value in options.items()
    }
    monkeypatch.setattr(export, "initialize", lambda *_, **__: pytest.fail("made"))
    with pytest.raises(BadInput, match=message):
        export.main(ExportConfig(**options))


def test_a_descriptor_that_is_a_directory_too_is_refused(tmp_path, monkeypatch):
    """Which of the two is exported is not left to chance; ./NAME is the directory."""
    monkeypatch.setitem(config.MODELS, "small", config.ModelConfig(L=1, NH=2, C=16, maxT=16))
    monkeypatch.chdir(tmp_path)
    run("small", "checkpoint", "small")
    with pytest.raises(BadInput, match=r"is a descriptor and a directory here; write \./small for"):
        run("small", "llmc", "a.bin")
    run("./small", "llmc", "a.bin", verify=True)


def test_the_program_refuses_without_a_traceback(tmp_path):
    (tmp_path / "there.bin").touch()
    command = [sys.executable, "-m", "llmc_jax.export", "--source=d6", "--format=llmc"]
    result = subprocess.run(
        [*command, f"--output={tmp_path}/there.bin"], capture_output=True, text=True
    )
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "there.bin exists; add --overwrite" in result.stderr
