"""Two processes that make one run: the same losses, one that writes, and what can go wrong.

Each test runs the training program in processes of its own, which meet at a free port.
"""

import importlib.util
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from llmc_jax import train
from llmc_jax.config import BadInput
from llmc_jax.data.tokens import write_shard
from llmc_jax.training import processes
from llmc_jax.training.checkpoint import Checkpointer
from llmc_jax.training.logger import read_metrics
from llmc_jax.training.run_dir import RunDir
from tests import tiny
from tests.programs import Programs

# The mean over two processes in parts of 16 MiB, many times over.
REDUCE = """
import sys
import jax
import numpy as np
from llmc_jax.training import parallel, placement, zero
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_cpu_enable_async_dispatch", False)
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
mesh = parallel.make_mesh()
rows = (np.arange(2 << 23, dtype=np.int32).reshape(2, -1) % 1021).astype(np.float32)
mean = jax.jit(jax.shard_map(
    lambda x: zero.mean_part(x[0], x.dtype), mesh=mesh,
    in_specs=placement.ROWS, out_specs=placement.PARTS,
))
mine = placement.join(rows[placement.own_rows(mesh, 2)], mesh, placement.ROWS)
wanted = rows.mean(axis=0)
for _ in range(40):
    for part in mean(mine).addressable_shards:
        np.testing.assert_array_equal(part.data, wanted[part.index])
"""


SERVERS: list[Programs] = []


@pytest.fixture(scope="module", autouse=True)
def servers():
    SERVERS[:] = [Programs("tests.train_tiny") for _ in range(2)]
    yield
    for server in SERVERS:
        server.close()


def run(flags: list[str], server: int = 0, **environment) -> subprocess.CompletedProcess:
    return SERVERS[server].run("tests.train_tiny", *flags, **environment)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_data(tmp_path_factory.mktemp("data"), 400)


def flags_of(data: dict, **options) -> list[str]:
    cfg = dict(
        model="tiny", batch_size=2, sequence_length=16, total_batch_size=128, max_steps=6,
        val_every=3, val_batches=3, sample_every=0, learning_rate=1e-2, warmup_steps=2,
        weight_decay=0.1, checkpoint_every=3, heartbeat_timeout=6, coordinator_timeout=60,
    )  # fmt: skip
    return [f"--{name}={value}" for name, value in (cfg | data | options).items()]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_two(flags: list[str], own=((), ()), environments=({}, {}), place: bool = True):
    """The results of two processes with `flags`, each with some of its own."""
    port = free_port()

    def one(number: int):
        here = [
            f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2", f"--process_id={number}"
        ]  # fmt: skip
        environment = {k: v.format(port=port) for k, v in environments[number].items()}
        return run([*flags, *(here if place else []), *own[number]], number, **environment)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, range(2)))


def losses(folder) -> list:
    """Losses and norms of a run by step, in the order of the log."""
    keys = ("step", "train_loss", "val_loss", "grad_norm")
    return [[m.get(key, 0) for key in keys] for m in read_metrics(RunDir(folder).metrics)]


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """The run on one device of one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    result = run(flags_of(data, output_dir=folder))
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def together(data, tmp_path_factory):
    """The same on two devices of each of two processes, and what they said."""
    folder = tmp_path_factory.mktemp("together") / "run"
    watched = dict(profile_steps="5:6")
    if importlib.util.find_spec("tensorboardX"):
        watched["tensorboard"] = True
    flags = flags_of(data, output_dir=folder, devices="cpu:2", zero_stage=2, **watched)
    results = run_two(flags)
    return folder, results


def test_two_processes_make_the_run_of_one(alone, together):
    """Training and validation, at ZeRO's stage 2; one process writes and speaks."""
    folder, (one, two) = together
    assert one.returncode == 0 and two.returncode == 0, one.stderr + two.stderr
    np.testing.assert_allclose(losses(folder), losses(alone), rtol=1e-5)
    assert "4 x cpu (cpu) of 2 processes, shard_map, ZeRO stage 2" in one.stdout
    assert f"checkpoint {folder}/checkpoints/00000006" in one.stdout
    # what Gloo says of itself is in there, by several threads at once
    assert not re.search("model|step|loss|checkpoint|cache", two.stdout)
    assert "error" not in one.stderr + two.stderr
    assert len(list(folder.rglob("*.xplane.pb"))) == 1  # the profile's, of the first process
    events = len(list(folder.glob("tensorboard/*")))
    assert events == bool(importlib.util.find_spec("tensorboardX"))


def test_large_parts_are_reduced_without_a_fault():
    """Gloo's own reduce-scatter gives wrong numbers for parts of more than about 10 MiB."""
    place = f"127.0.0.1:{free_port()}"
    commands = [[sys.executable, "-c", REDUCE, place, str(number)] for number in range(2)]
    started = [subprocess.Popen(c, stderr=subprocess.PIPE, text=True) for c in commands]
    errors = [process.communicate(timeout=240)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "".join(errors)


def test_it_goes_on_with_other_devices_processes_and_stages(data, alone, together, tmp_path):
    """From 2 x 2 devices in stage 2 to 8 of one process in stage 3, whose parts are padded, and
    from those to one."""
    folder, _ = together
    options = dict(output_dir=folder, resume=True, batch_size=1)
    result = run(flags_of(data, resume_step=3, devices="cpu:8", zero_stage=3, **options))
    assert result.returncode == 0, result.stderr
    assert "another device: it was 4 x cpu and is now 8 x cpu" in result.stdout
    trained = [[row for row in losses(f) if row[1]] for f in (folder, alone)]  # validation is B's
    np.testing.assert_allclose(*trained, rtol=1e-5)
    result = run(flags_of(data, **options | dict(batch_size=8, max_steps=7, schedule_steps=6)))
    assert result.returncode == 0, result.stderr
    assert losses(folder)[-2][0] == 6


def test_a_process_dies_and_the_run_goes_on_with_fewer(data, alone, tmp_path):
    """The other ends, not with status 0, after a sentence; its last checkpoint is whole."""
    flags = flags_of(data, output_dir=tmp_path / "run", devices="cpu:1")
    one, two = run_two(flags, environments=({}, dict(AT=f"4,{signal.SIGKILL:d}")))
    assert two.returncode == -signal.SIGKILL
    assert one.returncode not in (0, 2), one.stdout
    assert re.search(
        "the other processes cannot be reached|if another process has died", one.stderr
    )
    assert "start all again with --resume" in one.stderr
    assert Checkpointer(RunDir(tmp_path / "run").checkpoints).steps() == [3]
    result = run([*flags, "--resume"])
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(alone), rtol=1e-5)


@pytest.mark.parametrize("kind", [ValueError, jax.errors.JaxRuntimeError])
def test_a_lost_process_is_known_by_what_is_said(monkeypatch, kind):
    """By whatever type of exception: it hangs on what waited for the result."""
    said = []
    monkeypatch.setattr(processes, "several", lambda: True)
    monkeypatch.setattr(processes, "end", lambda sentence, status: said.append((sentence, status)))
    with processes.ending_together(1000):
        raise kind("UNKNOWN: Gloo all-reduce failed: Connection closed by peer")
    ((sentence, status),) = said
    assert sentence.startswith("the other processes cannot be reached after step 0") and status == 1


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyboardInterrupt(), ("interrupted", 130)),
        (OSError("broken"), ("this process ended after step 0", 1)),
        (BadInput("mine alone"), ("mine alone", 2)),
    ],
)
def test_what_only_one_process_meets_at_the_start_ends_it_at_once(monkeypatch, error, told):
    """The usual way waits an hour for the others, which wait for this one."""

    def fail(_):
        raise error

    def end(*sentence, status):
        raise SystemExit(*sentence, status)

    monkeypatch.setattr(train, "meet", lambda _: None)
    monkeypatch.setattr(train, "set_up", fail)
    monkeypatch.setattr(processes, "several", lambda: True)
    monkeypatch.setattr(processes, "end", end)
    with pytest.raises(SystemExit) as ended:
        train.main(tiny.config())
    assert ended.value.args == told


def test_flags_of_another_version_are_named(monkeypatch):
    """In whichever process they are; and what all know of ends no process at once."""
    for what in ([{"--a": 1}, {"--a": 1, "--b": 2}], [{"--a": 1, "--b": 2}, {"--a": 1}]):
        monkeypatch.setattr(processes, "exchange", lambda _, what=what: what)
        with pytest.raises(BadInput, match=r"--b is .*not known in process") as error:
            processes.refuse_differences({})
        monkeypatch.setattr(processes, "several", lambda: True)
        with pytest.raises(BadInput, match="--b is"), processes.ending_together(1000):
            raise error.value


def test_a_signal_to_one_stops_all_at_the_same_step(data, tmp_path):
    flags = flags_of(data, output_dir=tmp_path / "run", max_steps=1000, val_every=0)
    one, two = run_two(flags, environments=({}, dict(AT=f"4,{signal.SIGTERM:d}")))
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    stopped = re.search(r"stopped by SIGTERM after step (\d+)/1000: checkpoint of", one.stdout)
    assert 4 < int(stopped[1]) < 10
    assert Checkpointer(RunDir(tmp_path / "run").checkpoints).newest() == int(stopped[1])


def test_a_last_checkpoint_that_cannot_be_written_ends_all_with_a_sentence(data, tmp_path):
    """Status 1, and not that of a process whose peer has gone. What is in the way is a file."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "00000006").touch()
    one, two = run_two(flags_of(data, output_dir=tmp_path / "run", resume=True))
    told = "the checkpoint of step 6 could not be written: File exists"
    assert (one.returncode, two.returncode) == (1, 1), one.stderr + two.stderr
    assert f"error: {told}" in one.stderr and "newest whole one is of step 3" in one.stderr
    assert f"error: process 0 cannot go on: {told}" in two.stderr


def test_a_signal_to_one_ends_the_validation_of_all(data, tmp_path, alone):
    """Within two batches of 10; the run that goes on validates as if nothing had been."""
    longer = dict(val_data=data["train_data"], val_batches=-1, output_dir=tmp_path / "run")
    flags = flags_of(data, **longer)
    one, two = run_two(flags, environments=({}, dict(VALIDATING="12")))
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    assert "stopped by SIGTERM after step 3/6: checkpoint of step 3 saved" in one.stdout
    assert [line[0] for line in losses(tmp_path / "run") if line[2]] == [0]
    assert run([*flags, "--resume"]).returncode == 0
    steps = [line[0] for line in losses(tmp_path / "run")]
    assert steps == [line[0] for line in losses(alone)]


def slurm(number: int) -> dict[str, str]:
    """The variables of one of two tasks of a job step."""
    return dict(
        SLURM_JOB_ID="1", SLURM_STEP_NODELIST="127.0.0.1", SLURM_NTASKS="2",
        SLURM_PROCID=str(number), SLURM_LOCALID=str(number), JAX_COORDINATOR_PORT="{port}",
    )  # fmt: skip


def test_slurm_is_found_and_flags_and_data_must_agree(data, tmp_path):
    """Both processes find each other by what SLURM tells them, then compare."""
    places = dict(environments=(slurm(0), slurm(1)), place=False)
    write_shard(tmp_path / "other.bin", tiny.tokens(400, 9))
    for own, message in [
        (["--learning_rate=0.5"],
         "--learning_rate is 0.01 in process 0 and 0.5 in process 1; all processes must be given"),
        ([f"--train_data={tmp_path}/other.bin"], "--train_data is .* in process 0 and .*other.bin"),
        (["--train_data=/nowhere.bin"], "--train_data=/nowhere.bin matches no file"),
    ]:  # fmt: skip
        results = run_two(flags_of(data, checkpoint_every=0), ((), own), **places)
        for result in results:
            assert result.returncode == 2, result.stderr
            assert re.search(message, result.stderr) and "Traceback" not in result.stderr
    assert "process 1 cannot start: --train_data=/nowhere.bin" in results[0].stderr


@pytest.mark.parametrize(
    ("number", "message"), [(1, "nobody answers at"), (0, "not all of the other processes came to")]
)
def test_nobody_comes(data, number, message):
    """The address is in the sentence."""
    place = f"127.0.0.1:{free_port()}"
    result = run(
        flags_of(
            data, checkpoint_every=0, coordinator_address=place, num_processes=2, process_id=number,
            coordinator_timeout=2,
        )
    )  # fmt: skip
    assert result.returncode == 1  # it is no mistake in the flags: the next start may go well
    assert f"error: {message} {place} within 2 s" in result.stderr
    assert "Traceback" not in result.stderr
