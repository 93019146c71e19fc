"""Model descriptors are llm.c's; options that define a run are told from those that do not."""

import dataclasses
import importlib

import jax
import pytest

from llmc_jax.config import MODELS, BadInput, TrainConfig, changes, from_home, model_config
from llmc_jax.models import gpt2


@pytest.mark.parametrize(
    ("descriptor", "parameters"),
    [
        ("d6", 30_357_504),
        ("gpt2:d12", 124_475_904),
        ("d24", 354_871_296),
        ("d36", 774_090_240),
        ("d48", 1_557_686_400),
        ("gpt3:c768", 125_262_336),
    ],
)
def test_models_have_llm_cs_sizes(descriptor, parameters):
    model = model_config(descriptor)
    assert model.num_parameters == parameters
    assert sum(x.size for x in jax.tree.leaves(gpt2.shapes(model))) == parameters
    assert model.maxT == (2048 if descriptor.startswith("gpt3") else 1024)


def test_every_model_divides_into_its_heads():
    names = [f"d{n}" for n in (6, 12, 24, 36, 48, 60, 72, 84)]
    names += [f"gpt3:c{n}" for n in (384, 768, 1024, 1536, 2048, 2560, 4096, 12288)]
    assert sorted(MODELS) == sorted(names)
    for model in MODELS.values():
        assert model.C % model.NH == 0 and model.Vp % 128 == 0 and model.Vp >= model.V


@pytest.mark.parametrize(
    ("descriptor", "message"),
    [
        ("d7", "--model=d7 is unknown; use one of d6, d12"),
        ("gpt3:c5140", "5140 channels do not divide into heads of 128"),
        ("gpt2:gpt3:c768", "is unknown"),
        ("c768", "is unknown"),
        ("", "is unknown"),
    ],
)
def test_impossible_models_are_refused_by_name(descriptor, message):
    with pytest.raises(BadInput, match=message):
        model_config(descriptor)


def test_changes_names_what_defines_a_run_and_nothing_else():
    cfg = TrainConfig()
    saved = dataclasses.asdict(cfg)
    assert changes(saved, cfg) == []
    assert changes(saved, dataclasses.replace(cfg, val_every=7, output_dir="x", ops="jnp")) == []
    assert changes(saved, dataclasses.replace(cfg, seed=1)) == ["--seed was 42 and is now 1"]


def test_these_flags_define_a_run():
    """A resume with another value of them is refused: it would be another run."""
    fixed = [f.name for f in dataclasses.fields(TrainConfig) if not f.metadata["may_change"]]
    assert " ".join(fixed) == (
        "sequence_length total_batch_size shuffle shuffle_order overfit_single_batch seed "
        "lr_schedule learning_rate schedule_steps warmup_steps final_lr_fraction weight_decay "
        "grad_clip adam_beta1 adam_beta2 adam_eps dtype grad_reduce_dtype"
    )


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("~/runs/a", "/home/me/runs/a"),
        ("~", "/home/me"),
        ("~/a*.bin:0.7,b/~.bin:0.3", "/home/me/a*.bin:0.7,b/~.bin:0.3"),
        ("~/a.bin,~/b.bin", "/home/me/a.bin,/home/me/b.bin"),
        ("hf:~/gpt2", "hf:/home/me/gpt2"),
        ("hf:gpt2", "hf:gpt2"),
        ("./~", "./~"),
        ("~nobody-has-this-name/a", "~nobody-has-this-name/a"),
    ],
)  # fmt: skip
def test_a_path_may_begin_at_home(monkeypatch, given, meant):
    monkeypatch.setenv("HOME", "/home/me")
    cfg = from_home(TrainConfig(train_data=given, profile_steps="~/"))
    assert (cfg.train_data, cfg.profile_steps) == (meant, "~/")
    assert not changes(dataclasses.asdict(TrainConfig(train_data=meant)), cfg, may_change=True)


@pytest.mark.parametrize(
    ("module", "name", "paths"),
    [
        ("config", "TrainConfig",
         "model train_data val_data output_dir compilation_cache hellaswag init_from"),
        ("prepare", "PrepareConfig", "input output_dir download_dir"),
        ("generate", "GenerateConfig", "run model prompts"),
        ("evaluate", "EvaluateConfig", "run model val_data hellaswag mmlu data_dir output"),
        ("export", "ExportConfig", "source output"),
        ("checkpoint", "CheckpointConfig", "run"),
        ("plot", "PlotConfig", "output"),
        ("compare", "CompareConfig", "results output"),
        ("bench", "BenchConfig", "output"),
    ],
)  # fmt: skip
def test_these_flags_are_paths(module, name, paths):
    options = dataclasses.fields(getattr(importlib.import_module(f"llmc_jax.{module}"), name))
    assert " ".join(field.name for field in options if field.metadata["path"]) == paths
