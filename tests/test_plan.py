"""The planning program: tables, the largest batch, what it refuses; and a run out of memory."""

import dataclasses
from contextlib import nullcontext

import jax
import pytest

from llmc_jax import config, devices, plan, train
from llmc_jax.config import BadInput, RunStopped
from llmc_jax.devices import DEVICES
from llmc_jax.ops.op import size
from llmc_jax.plan import PlanConfig
from llmc_jax.training import memory
from llmc_jax.training.checkpoint import Checkpointer
from llmc_jax.training.step import state_shapes
from tests import tiny


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch):
    monkeypatch.setitem(config.MODELS, "tiny", tiny.MODEL)


def cfg(**options) -> PlanConfig:
    return PlanConfig(**(dict(model="tiny", batch_size=2, sequence_length=16) | options))


def test_tables_of_a_device_that_is_not_here(capsys):
    """Ops are that device's, its kernels need not be loaded; times and operations by hand."""
    options = dict(num_devices=4, total_batch_size=256, tokens=10**12, mfu=0.5, dtype="bfloat16")
    plan.main(cfg(device="h100", memory="1GiB", zero_stage=2, **options))
    screen = capsys.readouterr().out
    assert "device   4 x H100, 1.00 GiB for a step of each" in screen
    assert "attention jnp, mlp cuda, classifier cuda" in screen  # heads of 16: no CUDA kernel
    P = 4 * tiny.MODEL.num_parameters / 2**20
    cells = [line.split("|") for line in screen.splitlines() if line.count("|") == 3]
    rows = {name.strip(): value.strip() for _, name, value, _ in cells}
    assert rows["parameters, float32"] == f"{P:.1f}"
    assert rows["AdamW's two moments"] == f"{2 * P / 4:.1f}"
    assert "\nfits; the largest --batch_size" in screen
    assert "\nfor several devices that is an estimate: of d6 and d12 on" in screen
    flop = 6 * tiny.MODEL.num_parameters + 6 * 2 * 48 * 16
    assert rows["operations"] == f"{flop * 1e12:.3g} FLOP"
    assert rows["steps"] == f"{10**12 // 256:,}"
    hours = flop * 1e12 / (4 * 989e12 * 0.5) / 3600
    time = "time at 50% of 989 TFLOP/s (NVIDIA H100 datasheet (SXM))"
    assert rows[time] == plan.duration(hours * 3600)


def test_virtual_devices_are_counted_unless_another_number_is_given(monkeypatch, capsys):
    monkeypatch.setattr(plan.parallel, "select_devices", lambda _: 2)
    planned = memory.Memory(0, 0, 0, {}, 2**30, "")
    monkeypatch.setattr(memory, "step_memory", lambda *_: planned)
    for options, told in (
        (dict(), "2 x"),
        (dict(num_devices=4), "4 x"),  # in two processes
        (dict(num_processes=3), "6 x"),
        (dict(num_processes=2, num_devices=4), "4 x"),
    ):
        plan.main(cfg(devices="cpu:2", ops="jnp", memory="1GiB", **options))
        screen = capsys.readouterr().out
        assert f"device   {told}" in screen
        # that is no largest, but where the search ends
        assert "\nfits; every --batch_size up to 65,535 does (more were not looked at)" in screen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_devices=2), "--num_devices=2 is no multiple of the 4 that --devices=cpu:4 gives"),
        (dict(num_devices=4, num_processes=2), "--devices=cpu:4 gives --num_processes=2, 8; leave"),
        (dict(num_devices=8, num_processes=1), "--devices=cpu:4 gives --num_processes=1, 4; leave"),
    ],
)
def test_another_number_of_devices_than_training_would_have_is_refused(options, message):
    with pytest.raises(BadInput, match=message):
        plan.count_devices(cfg(devices="cpu:4", **options), 4)


@pytest.mark.parametrize(("name", "limit"), [("H100", 60e9), ("TPU v5e", 16 * 2**30)])
def test_a_step_may_take_what_jax_takes_of_the_device(name, limit):
    """Three quarters of a GPU's 80 GB, all of a TPU."""
    assert plan.memory_limit(cfg(device=name), devices.named(name)) == limit


@pytest.mark.parametrize("mapper", ["shard_map", "pmap"])
def test_check_compares_with_xla_and_nothing_is_run(capsys, mapper):
    plan.main(cfg(check=True, ops="ffi", mapper=mapper))
    told = next(line for line in capsys.readouterr().out.splitlines() if "XLA plans" in line)
    assert abs(float(told.split("table is ")[1].split()[0])) < 2


def test_tokens_are_those_of_the_data(tmp_path, capsys):
    plan.main(cfg(train_data=tiny.write_data(tmp_path)["train_data"]))
    assert "| tokens | 5,968 |" in capsys.readouterr().out
    plan.main(cfg(train_data="/nowhere_*.bin"))
    told = capsys.readouterr().out
    assert "| tokens, steps, operations | not known: --train_data=/nowhere_*.bin matches no" in told
    assert told.endswith("or give --tokens=N |\n")
    plan.main(cfg(max_steps=10))
    assert "| tokens | 320 |" in capsys.readouterr().out


@pytest.mark.parametrize("limit", [50, 1099, 2999, 9000, 10**6])
@pytest.mark.parametrize(
    "bytes_of", [lambda b: 100 + 7 * b, lambda b: max(1000 + b, 100 + 9 * b, 50 * b - 3000)]
)
def test_largest_batch(bytes_of, limit):
    """What trying one after the other gives, in few calls."""
    calls = []
    found = plan.largest_batch(limit, lambda b: calls.append(b) or bytes_of(b))
    wanted = max([b for b in range(1, plan.LARGEST) if bytes_of(b) <= limit], default=0)
    assert found == wanted and len(calls) < 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(memory="80 giga"), "--memory=80 giga is not a size; write for instance 80GiB"),
        (dict(memory="80"), "--memory=80 is not a size; write for instance 80GiB"),
        (dict(memory="0GiB"), "--memory=0GiB is what no device has"),
        (dict(memory="9" * 400 + "B"), "--memory=9+B is what no device has"),
        (dict(devices="nonsense"), "--devices=nonsense must be cpu:N"),
        (dict(learning_rate=float("inf")), "--learning_rate=inf must be finite"),
        (dict(mapper="pmap", zero_stage=2), "--mapper=pmap keeps the whole state on every device"),
        (dict(device="H1000"), "--device=H1000 is not in the table .* use one of A100-40GB, A100"),
        (dict(sequence_length=33), "--sequence_length=33 is longer than --model=tiny"),
        (dict(model="d7"), "--model=d7 is unknown"),
        (dict(total_batch_size=100), "--total_batch_size=100 is not a multiple of the 32 tokens"),
        (dict(num_devices=3, total_batch_size=64), "multiple of the 96 tokens .* x 3 devices"),
        (dict(ops="attention=ffi", device="TPU v5e"), "attention has no implementation 'ffi'"),
        (dict(check=True, device="H200"), "--check compiles the step for the device here"),
        (dict(mfu=40.0), r"--mfu=40\.0 is a part of the peak, 1 at most; 40 % are written 0\.4"),
        (dict(check=True, num_devices=2), "--check compares the step of one device"),
    ],
)
def test_impossible_plans_are_one_sentence(options, message):
    with pytest.raises(BadInput, match=message):
        plan.main(cfg(**options))


def test_the_largest_batch_is_one_that_the_total_is_made_of(capsys):
    for options, told in (
        (dict(), "does is "),
        (dict(total_batch_size=96), "does with --total_batch_size=96 is 6, with"),
    ):
        plan.main(cfg(memory="1.6MiB", ops="ffi", **options))
        assert f"\nfits; the largest --batch_size that {told}" in capsys.readouterr().out


def test_what_fits_nowhere_says_what_would_help(capsys):
    for recompute, told in ((0, "length, --recompute=4, more"), (4, "length, more")):
        plan.main(cfg(memory="10KB", recompute=recompute))
        screen = capsys.readouterr().out
        assert "does not fit, and neither does --batch_size=1: a smaller --model" in screen
        assert f"{told} --num_devices with --zero_stage" in screen


def test_devices_are_found_by_every_name():
    for device in DEVICES:
        assert devices.named(device.name) == device
        assert all(devices.known(kind) == device for kind in device.kinds)
        assert device.source and device.bfloat16 >= device.float32 > 0
    assert devices.known("cpu") is None


@pytest.mark.parametrize("at", ["plan", "compile", "step"])
def test_a_run_out_of_memory_ends_with_the_table(tmp_path, monkeypatch, at):
    """And with flags that would fit; a checkpoint is named where there is one. Another error of
    the device is not taken for it. Where XLA's plan is more than there is, nothing is begun."""

    def shrink():
        monkeypatch.setattr(memory, "device_memory", lambda: 1_000_000)

    def fail(what="RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes"):
        raise jax.errors.JaxRuntimeError(what)

    compile_update = train.compile_update

    def failing(*arguments):
        if at == "plan":
            shrink()
        compiled = compile_update(*arguments)
        shrink()
        calls = []

        def update(*batch):
            calls.append(0)
            return fail() if len(calls) > 4 else compiled(*batch)

        return fail() if at == "compile" else update

    run = tiny.config(**tiny.write_data(tmp_path), output_dir=f"{tmp_path}/run", checkpoint_every=2)
    monkeypatch.setattr(train, "compile_update", failing)
    with pytest.raises(RunStopped) as error:
        train.main(run)
    told = str(error.value)
    saved = "nothing is saved" if at != "step" else "the newest checkpoint is of step 4"
    assert told.startswith(
        f"the device's memory, 1 MiB, less 1 MiB for the copy of a checkpoint, is not enough for "
        f"this step; {saved}"
    )
    assert "| AdamW's two moments " in told and "| activations: qkv" in told
    assert told.endswith("says so before it.)") and " --recompute=4 would take" in told
    monkeypatch.setattr(train, "compile_update", lambda *_: fail("INTERNAL: something else"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        train.main(dataclasses.replace(run, output_dir="", checkpoint_every=0))


@pytest.mark.parametrize("times", [1.2, 2.2, 3])
def test_the_copy_that_checkpoints_are_written_from_counts(tmp_path, monkeypatch, capsys, times):
    """Nothing is begun where the state and its copy do not fit; the step takes 1.43 times the
    state. Where there are no checkpoints there is no copy."""
    run = tiny.config(**tiny.write_data(tmp_path), output_dir=f"{tmp_path}/run", checkpoint_every=2)
    state = size(state_shapes(tiny.MODEL))
    monkeypatch.setattr(memory, "device_memory", lambda: int(times * state))
    reserved, reserve = [], Checkpointer.reserve
    monkeypatch.setattr(
        Checkpointer, "reserve", lambda *args, **how: [reserved.append(1), reserve(*args, **how)]
    )
    if times == 3:
        train.main(run)
        return
    with pytest.raises(RunStopped, match="less 1 MiB for the copy of a checkpoint") as error:
        train.main(run)
    assert bool(reserved) == (times > 2)
    assert "--recompute=4 would take" in str(error.value)
    assert "take a smaller --model" in str(error.value)
    if times > 2:
        plan.main(PlanConfig(**dataclasses.asdict(run)))
        screen = capsys.readouterr().out
        assert "for a step of each, less 0.00 GiB for the copy of a checkpoint" in screen
        assert "\ndoes not fit, and neither does --batch_size=1" in screen
    with pytest.raises(RunStopped, match="memory, 1 MiB, is not") if times < 2 else nullcontext():
        train.main(dataclasses.replace(run, output_dir=f"{tmp_path}/other", checkpoint_every=0))


def test_want_of_memory_of_the_host_is_the_same_to_a_run(tmp_path, monkeypatch):
    """NumPy's error, and not XLA's."""

    def fail(*_):
        raise MemoryError("Unable to allocate 7 bytes")

    monkeypatch.setattr(train, "compile_update", fail)
    with pytest.raises(RunStopped, match="is not enough for this step; nothing is saved"):
        train.main(tiny.config(**tiny.write_data(tmp_path)))
