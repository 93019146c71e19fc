"""The same run on any number of devices, mapped by pmap or shard_map, at every stage of ZeRO.

The whole matrix is benchmarks/devices.py. Here a process of its own has 8 virtual devices.
"""

import json
import math
import subprocess
import sys

import jax
import numpy as np
import pytest

from llmc_jax import config, ops, train
from llmc_jax.config import BadInput
from llmc_jax.models import gpt2
from llmc_jax.training import processes, zero
from llmc_jax.training.rooms import rooms_like
from tests import tiny

BATCH = dict(total_batch_size=256, batch_size=2, steps=5)
# Nothing of the tiny model divides by 3, and most of it not by 8.
CASES = {
    "one": dict(devices=1),
    "pmap": dict(devices=2, mapper="pmap"),
    "whole": dict(devices=8),
    "zero 1": dict(devices=8, zero_stage=1, batch_size=1),
    "zero 2": dict(devices=8, zero_stage=2, batch_size=1),
    "zero 3": dict(devices=8, zero_stage=3, batch_size=1, recompute=4),
    "zero 3 of 3": dict(devices=3, zero_stage=3, total_batch_size=3 * 64),
    "one, as 3": dict(devices=1, total_batch_size=3 * 64),
    "bfloat16": dict(devices=2, zero_stage=1, grad_reduce_dtype="bfloat16", steps=3),
    "jnp": dict(devices=2, zero_stage=3, ops="jnp", steps=3),
}


@pytest.fixture(scope="module")
def curves():
    """What tests/curve.py says of each case."""
    task = dict(model="tiny", cases=[BATCH | case for case in CASES.values()])
    command = [sys.executable, "-m", "tests.curve", json.dumps(task)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    lines = map(json.loads, result.stdout.splitlines())
    return dict(zip(CASES, lines, strict=True))


@pytest.mark.parametrize("name", [name for name in CASES if name != "one"])
def test_losses_do_not_depend_on_the_devices(curves, name):
    """Within rounding; that a case gives the same bits twice, curve.py has seen."""
    found, wanted = curves[name], curves["one, as 3" if "3 of 3" in name else "one"]
    if name == "one, as 3":
        assert found["losses"] != curves["one"]["losses"]
        return
    count = len(found["losses"])
    rtol = 1e-3 if name == "bfloat16" else 1e-5
    np.testing.assert_allclose(found["losses"], wanted["losses"][:count], rtol=rtol)
    np.testing.assert_allclose(found["norms"], wanted["norms"][:count], rtol=10 * rtol)
    assert (found["losses"][1] != wanted["losses"][1]) or rtol < 1e-3  # rounding is seen


def test_gradients_are_reduced_once_a_step_and_activations_never(curves):
    """Counted in the compiled programs, whose micro-batches are a loop of one body."""
    leaves, layers = 28, 2  # 12 a layer, 4 outside
    inside = 12 * layers
    assert curves["one"]["collectives"] == {}
    assert curves["pmap"]["collectives"] == {"all-reduce": 1}
    assert curves["whole"]["collectives"] == {"all-reduce": 1}
    # the all-reduce is that of the loss and the norm
    parts = {"reduce-scatter": leaves, "all-gather": leaves, "all-reduce": 1}
    assert curves["zero 1"]["collectives"] == curves["zero 2"]["collectives"] == parts
    # parameters are gathered, those of the layers again in backward, and not after the update
    gathered = parts | {"all-gather": leaves + inside}
    assert curves["zero 3"]["collectives"] == gathered


def test_each_stage_takes_its_eighth(curves):
    """Arguments of the compiled step: parameters and moments, but for windows and the batch."""
    sizes = [math.prod(x.shape) for x in jax.tree.leaves(gpt2.shapes(tiny.MODEL))]
    all_of_it, part = sum(sizes), sum(zero.part_size(n, 8) for n in sizes)
    rest = 2 * (4 * 128 + 4) + 4
    cfg = tiny.config(total_batch_size=256, batch_size=2)
    rooms = rooms_like(ops.select("ffi", "cpu")[0], tiny.MODEL, cfg, "cpu", 8)
    for name, numbers in [
        ("whole", 3 * all_of_it + sum(room.size for room in rooms)),
        ("zero 1", all_of_it + 2 * part),
        ("zero 2", all_of_it + 2 * part),
        ("zero 3", 3 * part),
    ]:
        batch = 2 * 4 * 256 // 8
        assert 0 <= curves[name]["arguments"] - 4 * numbers - rest - batch < 1024, name
    assert curves["zero 2"]["temporary"] < 0.8 * curves["zero 1"]["temporary"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(devices="gpu"), "--devices=gpu must be cpu:N"),
        (dict(devices="cpu:0"), "--devices=cpu:0 must be cpu:N"),
        (dict(mapper="pmap", zero_stage=2), "with --zero_stage=2 take --mapper=shard_map"),
        (dict(mapper="pmap", num_processes=2, process_id=0, coordinator_address="h:1"),
         "--mapper=pmap maps the devices of one process"),
        (dict(num_processes=2), "several processes need --coordinator_address and --process_id"),
        (dict(process_id=1), "need --coordinator_address and --num_processes too"),
        (dict(num_processes=2, process_id=2, coordinator_address="h:1"),
         "--process_id=2 must be below --num_processes=2"),
        (dict(num_processes=2, process_id=0, coordinator_address="h"), "=h must be HOST:PORT"),
        (dict(num_processes=2, process_id=0, coordinator_address="h:65536"), "port below 65536"),
        (dict(total_batch_size=100), "multiple of the 32 .* the nearest that work: 96 and 128"),
        (dict(total_batch_size=16), "the nearest that work: 32; or --batch_size=1"),
    ],
)  # fmt: skip
def test_refused(tmp_path, monkeypatch, options, message):
    monkeypatch.setitem(config.MODELS, "tiny", tiny.MODEL)
    with pytest.raises(BadInput, match=message):
        train.main(tiny.config(**tiny.write_data(tmp_path, 400), **options))


def test_the_launcher_is_known_by_its_variables(monkeypatch):
    """Open MPI 5 says everything but where the first process is; one task of SLURM is alone."""
    for name in ("SLURM_STEP_NODELIST", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    assert processes._place(tiny.config()) is None
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[1-2]")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert processes._place(tiny.config()) is None
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert processes._place(tiny.config())["num_processes"] is None  # JAX reads SLURM's
    assert processes._place(tiny.config(num_processes=1)) is None
    monkeypatch.setenv("SLURM_NTASKS", "1")
    for name, value in dict(SIZE="4", RANK="3").items():
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", value)
    with pytest.raises(BadInput, match="Open MPI does not say where its first process is"):
        processes._place(tiny.config())
    place = processes._place(tiny.config(coordinator_address="h:1"))
    assert place == dict(coordinator_address="h:1", num_processes=4, process_id=3)
