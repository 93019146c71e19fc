"""A profile reads like the model, changes no instruction, and its range is checked."""

import dataclasses
import gzip
import json
from contextlib import nullcontext

import jax
import pytest

from llmc_jax import config, ops, train
from llmc_jax.config import BadInput
from llmc_jax.models import gpt2
from llmc_jax.training.profile import (
    Profile,
    instruction_names,
    named,
    profiled_steps,
    short_name,
)
from llmc_jax.training.run_dir import RunDir
from tests import tiny
from tests.survive.runs import interrupt_at
from tests.training.test_step import batch, make_step


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    monkeypatch.setitem(config.MODELS, "tiny", tiny.MODEL)
    return tiny.config(**tiny.write_data(tmp_path), output_dir=f"{tmp_path}/run", val_every=0)


def lowered(spec: str):
    step, state, rooms, _ = make_step(1, 2, spec)
    return step.lower(state, rooms, *batch(1, 2))


def test_every_op_and_layer_is_named():
    names = set(instruction_names(lowered("auto").compile().as_text()).values())
    ops_of_a_block = ("matmul", "attention", "residual_layernorm", "mlp")
    wanted = [
        f"block{layer}/{op}.{direction}"
        for layer in range(tiny.MODEL.L)
        for op in ops_of_a_block
        for direction in ("forward", "backward")
    ]
    wanted += ["encoder.forward", "encoder.backward", "layernorm.backward", "classifier.forward"]
    assert not {*wanted, "adamw", "global_norm"} - names


@pytest.mark.parametrize("spec", ["jnp", "auto"])
def test_names_change_no_instruction(spec, monkeypatch):
    """What XLA gets to compile is the same text without them."""
    with_names = lowered(spec)
    assert "attention.backward" in with_names.as_text(debug_info=True)
    monkeypatch.setattr(ops, "named", lambda name, op: op)
    monkeypatch.setattr(gpt2.jax, "named_scope", lambda name: nullcontext())
    without = lowered(spec)
    assert "attention.backward" not in without.as_text(debug_info=True)
    assert with_names.as_text() == without.as_text()


def test_a_trace_of_some_steps_has_the_names(cfg, tmp_path, capsys):
    train.main(dataclasses.replace(cfg, profile_steps="3:4"))
    path = tmp_path / "run" / "profile" / "steps_3_4.json.gz"
    assert f"profile of steps 3 to 4: {path} for ui.perfetto.dev" in capsys.readouterr().out
    with gzip.open(path) as file:
        events = [event.get("name", "") for event in json.load(file)["traceEvents"]]
    assert events.count("block0/attention.forward") == 2  # steps
    assert events.count("block1/mlp.backward") == 2 and events.count("adamw") >= 2
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))  # for XProf


def test_a_trace_that_a_signal_ends_is_of_the_steps_until_then(cfg, tmp_path, monkeypatch, capsys):
    interrupt_at(monkeypatch, 3)
    train.main(dataclasses.replace(cfg, profile_steps="3:6"))
    path = tmp_path / "run" / "profile" / "steps_3_4.json.gz"
    screen = capsys.readouterr().out
    assert "stopped by SIGTERM after step 4/6" in screen and path.exists()
    assert f"profile of steps 3 to 4: {path} for ui.perfetto.dev" in screen


def test_a_resumed_run_traces_what_is_left(cfg, tmp_path, capsys):
    train.main(dataclasses.replace(cfg, max_steps=3, checkpoint_every=3, schedule_steps=6))
    again = dataclasses.replace(cfg, resume=True, schedule_steps=6)
    train.main(dataclasses.replace(again, profile_steps="2:3"))
    assert "--profile_steps=2:3: those steps are over" in capsys.readouterr().out
    assert not (tmp_path / "run" / "profile").exists()


def test_a_profile_that_cannot_be_written_costs_the_profile_only(cfg, tmp_path):
    """XLA writes it, and its error is none of the system's (nor is want of memory what it says)."""
    (tmp_path / "run").mkdir()
    with Profile(
        RunDir(tmp_path / "run"), dataclasses.replace(cfg, profile_steps="1:1"), None, 0
    ) as profile:
        profile.start(0)
        stop = jax.profiler.stop_trace

        def fail():
            stop()
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: No space left on device\nat 7")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax.profiler, "stop_trace", fail)
            told = profile.stop(1)
    assert told == "the profile cannot be written: No space left on device"


def test_a_process_that_writes_nothing_traces_nothing(cfg):
    profile = Profile(None, dataclasses.replace(cfg, profile_steps="1:2"), None, 0)
    assert not any(map(profile.turns_at, range(6)))
    profile.start(0)
    assert profile.stop(2) == ""


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            "10",
            "--profile_steps=10 is not a range of steps; write .* as 10:15",
        ),
        ("a:b", "is not a range"),
        ("0:3", "is not a range"),
        ("5:4", "is not a range"),
        ("5:7", "--profile_steps=5:7 is past the end: the run has 6 steps"),
    ],
)
def test_a_bad_range_is_refused_before_anything_is_written(cfg, tmp_path, steps, message):
    with pytest.raises(BadInput, match=message):
        train.main(dataclasses.replace(cfg, profile_steps=steps))
    with pytest.raises(BadInput, match="--profile_steps=1:2 needs --output_dir"):
        profiled_steps(dataclasses.replace(cfg, profile_steps="1:2", output_dir=""))
    assert not (tmp_path / "run").exists()


def test_names_are_without_what_jax_puts_around_them():
    path = "jit(train_step)/shard_map/while/body/closed_call/block3/attention.backward/ffi_call"
    assert short_name(path) == "block3/attention.backward"
    assert short_name("jit(train_step)/block3/add") == "block3/add"


def test_only_instructions_of_the_step_get_its_names():
    hlo = (
        "HloModule jit_step, is_scheduled=true\n"
        '  %call.1 = f32[2]{0} custom-call(%x), metadata={op_name="jit(step)/adamw/ffi_call"}\n'
    )
    ours, another = (dict(hlo_op="call.1", hlo_module=name) for name in ("jit_step", "jit_eval"))
    events = [dict(name="call.1", args=args) for args in (ours, another)]
    events += [dict(name="end: call.1"), dict(name="something")]
    trace = named(dict(traceEvents=events), hlo)
    assert [event["name"] for event in trace["traceEvents"]] == ["adamw", "call.1", "something"]
    assert trace["traceEvents"][0]["args"]["hlo_op"] == "call.1"
