"""Runs that are killed, starved and damaged, each resumed and compared with one left alone.

    python -m tests.faults --count=200 --seed=0

Every case is a run of the tiny model in a process of its own that meets one to three faults drawn
from the seed, and is then resumed without any. It passes where the final state (parameters,
moments, windows) and the logs equal the undisturbed run's bit for bit. Nothing outside of a
temporary folder is touched. Exit status 1 where a case fails.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # programs from the cache make XLA talk

import jax
import numpy as np

from llmc_jax import config, ffi, machine, train
from llmc_jax.config import BadInput, RunStopped
from llmc_jax.training import arrays, checkpoint, manifest, parallel, placement
from llmc_jax.training.checkpoint import Checkpointer
from llmc_jax.training.run_dir import RunDir
from llmc_jax.training.step import state_shapes
from tests import tiny

STEPS = 24
# Checkpoints every four steps, three of which are kept; 36 sequences, so that epochs end on the way
COMMON = dict(
    max_steps=STEPS, val_every=6, checkpoint_every=4, keep_checkpoints=3, resume=True, val_batches=1
)
KINDS = [
    dict(dtype="float32"),
    dict(dtype="bfloat16", total_batch_size=64),
]
TIMEOUT_S = 120


# Faults that a run meets: each changes the process that is about to train. random is seeded.


def _kill_soon(draw: random.Random, number: int) -> None:
    threading.Timer(draw.uniform(0, 0.02), os.kill, (os.getpid(), number)).start()


def _before(module, name: str, call: int, act) -> None:
    """Let `act` happen as `module.name` is called for the `call`-th time."""
    function, calls = getattr(module, name), Counter()

    def changed(*args, **kwargs):
        calls[name] += 1
        if calls[name] == call:
            act()
        return function(*args, **kwargs)

    setattr(module, name, changed)


def kill_in_a_step(draw):
    _before(train, "train_batch", draw.randint(1, STEPS), lambda: _kill_soon(draw, signal.SIGKILL))


def sigterm_in_a_step(draw):
    _before(train, "train_batch", draw.randint(1, STEPS), lambda: _kill_soon(draw, signal.SIGTERM))


def sigint_in_a_step(draw):
    _before(train, "train_batch", draw.randint(1, STEPS), lambda: _kill_soon(draw, signal.SIGINT))


def two_signals(draw):
    def act():
        os.kill(os.getpid(), signal.SIGTERM)
        _kill_soon(draw, signal.SIGTERM)

    _before(train, "train_batch", draw.randint(1, STEPS), act)


def kill_in_a_save(draw):
    module, name = draw.choice(
        [
            (checkpoint, "_write_tree"),
            (arrays, "_write_file"),
            (manifest, "write"),
            (manifest, "_measure"),
            (checkpoint.Checkpointer, "_remove_old"),
            (checkpoint.Checkpointer, "remove"),
            (checkpoint.shutil, "rmtree"),
        ]
    )
    at_once = draw.random() < 0.5
    die = lambda: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
    _before(
        module,
        name,
        draw.randint(1, 400 if name == "_write_file" else 5),  # a checkpoint has 178 such files
        die if at_once else lambda: _kill_soon(draw, signal.SIGKILL),
    )


def kill_in_the_compilation(draw):
    _before(train, "compile_update", 1, lambda: _kill_soon(draw, signal.SIGKILL))


def kill_in_a_restore(draw):
    _before(checkpoint, "_read_tree", 1, lambda: _kill_soon(draw, signal.SIGKILL))


def kill_at_any_time(draw):
    threading.Timer(draw.uniform(0, 2), os.kill, (os.getpid(), signal.SIGKILL)).start()


def full_disk(draw):
    """From some step on, files cannot grow beyond a size: the state does not fit, or no file."""
    size = draw.choice([1000, 20_000, 100_000, 400_000])

    def act():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    _before(train, "train_batch", draw.randint(1, STEPS), act)


# Faults of what lies on the disk, between two processes.


def _newest(folder: Path, draw) -> list[Path]:
    """The files of the newest checkpoint."""
    steps = Checkpointer(folder / "checkpoints").steps()
    step = folder / "checkpoints" / f"{steps[-1]:08d}" if steps else None
    return sorted(path for path in step.rglob("*") if path.stat().st_size) if step else []


def flipped_bit(folder: Path, draw) -> None:
    files = [path for path in _newest(folder, draw) if path.is_file()]
    if files:
        path = draw.choice(files)
        data = bytearray(path.read_bytes())
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)


def missing_file(folder: Path, draw) -> None:
    files = [path for path in _newest(folder, draw) if path.is_file()]
    if files:
        draw.choice(files).unlink()


def truncated_file(folder: Path, draw) -> None:
    files = [path for path in _newest(folder, draw) if path.is_file()]
    if files:
        path = draw.choice(files)
        os.truncate(path, draw.randrange(path.stat().st_size))


IN_A_RUN = [
    kill_in_a_step, sigterm_in_a_step, sigint_in_a_step, two_signals, kill_in_a_save,
    kill_in_the_compilation, kill_in_a_restore, kill_at_any_time, full_disk,
]  # fmt: skip
ON_DISK = [flipped_bit, missing_file, truncated_file]


def run(cfg, log: Path, fault=None, draw=None) -> str:
    """Train in a new process; how it ended: exit 0, exit 1, signal 9, ..."""
    output, input = os.pipe()  # a pipe, because a full disk is also one for files of output
    child = os.fork()
    if child == 0:
        _run_and_exit(cfg, input, fault, draw)
    os.close(input)
    guard = threading.Timer(TIMEOUT_S, os.kill, (child, signal.SIGKILL))
    guard.start()
    with open(output, "rb") as reader, open(log, "ab") as file:
        shutil.copyfileobj(reader, file)
    status = os.waitpid(child, 0)[1]
    if not guard.is_alive():
        return "no end"
    guard.cancel()
    code = os.waitstatus_to_exitcode(status)
    return f"exit {code}" if code >= 0 else f"signal {-code}"


def _run_and_exit(cfg, output: int, fault, draw) -> None:
    """What the new process does; the exit status is program.run's."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    status = 3
    try:
        ffi.require("cpu")
        if fault:
            fault(draw)
        train.main(cfg)
        status = 0
    except (BadInput, RunStopped) as error:
        print(f"error: {error}", flush=True)
        status = 2 if isinstance(error, BadInput) else 1
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def outcome(folder: Path, result: Path) -> None:
    """Write what must be equal: a checksum of the final state, and both logs without clocks."""
    run = RunDir(folder)
    like = placement.replicated_like(state_shapes(tiny.MODEL), parallel.make_mesh())
    state = Checkpointer(run.checkpoints).restore_state(STEPS, like)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        digest.update(np.asarray(leaf).tobytes())
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    lines = [{k: v for k, v in m.items() if not k.endswith("_s")} for m in lines]
    result.write_text(json.dumps([digest.hexdigest(), lines, run.main_log.read_text()]))


def final(cfg, folder: Path) -> str:
    """The outcome of a finished run, read in a process of its own (this one never starts JAX)."""
    result = folder.with_suffix(".json")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            outcome(Path(cfg.output_dir), result)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    if os.waitpid(child, 0)[1]:
        return "unreadable"
    return result.read_text()


def run_case(number, args, data: dict, folder: Path, wanted: list[str]) -> dict:
    """One run with its faults; a record of what was done to it and whether it survived."""
    draw = random.Random(f"{args.seed} {number}")
    kind = number % len(KINDS)
    place = folder / f"case{number}"
    cfg = tiny.config(**data, **COMMON, **KINDS[kind], output_dir=str(place))
    log = folder / f"case{number}.log"
    faults, ends = [], []
    for turn in range(min(args.most, draw.choice([1, 1, 2, 3]))):
        # the first fault of a case goes round, so that each kind has its share
        fault = draw.choice(IN_A_RUN) if turn else IN_A_RUN[number // len(KINDS) % len(IN_A_RUN)]
        if fault is kill_in_a_restore and not turn:  # there must be something to restore
            run(cfg, log, kill_in_a_step, draw)
        ends.append(run(cfg, log, fault, draw))
        faults.append(fault.__name__)
        if draw.random() < 0.35 and len(Checkpointer(place / "checkpoints").steps()) > 1:
            damage = draw.choice(ON_DISK)
            damage(place, draw)
            faults.append(damage.__name__)
    ends.append(run(cfg, log))
    survived = ends[-1] == "exit 0" and final(cfg, place) == wanted[kind]
    good_ends = {"exit 0", "exit 1", "exit 2", "signal 9", "signal 15"}
    if survived and set(ends) <= good_ends:
        shutil.rmtree(place)
    else:
        survived = False
        print(f"case {number} FAILED: {faults} {ends}; see {log}", flush=True)
    return dict(faults=faults, ends=ends, survived=survived)


def work(worker: int, args, folder: Path) -> None:
    """A worker's share of the cases; the records go to a file."""
    place = folder / f"worker{worker}"
    place.mkdir()
    data = tiny.write_data(place, 400)
    wanted = []
    for kind, options in enumerate(KINDS):
        cfg = tiny.config(**data, **COMMON, **options, output_dir=f"{place}/whole{kind}")
        assert run(cfg, place / f"whole{kind}.log") == "exit 0", place
        wanted.append(final(cfg, place / f"whole{kind}"))
    records = [
        run_case(number, args, data, place, wanted)
        for number in range(args.count)
        if number // len(KINDS) % args.jobs == worker
    ]
    (folder / f"records{worker}.json").write_text(json.dumps(records))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument("--most", type=int, default=3, help="processes of a case that meet a fault")
    args = parser.parse_args()
    began = time.perf_counter()
    config.MODELS["tiny"] = tiny.MODEL
    folder = Path(tempfile.mkdtemp(prefix="faults"))
    jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    workers = []
    for worker in range(args.jobs):
        if (child := os.fork()) == 0:
            status = 1
            try:
                work(worker, args, folder)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)
        workers.append(child)
    if any([os.waitpid(child, 0)[1] for child in workers]):
        return 1
    files = [folder / f"records{worker}.json" for worker in range(args.jobs)]
    records = [record for file in files for record in json.loads(file.read_text())]
    report(records, time.perf_counter() - began, args.seed)
    survived = all(record["survived"] for record in records)
    if survived:
        shutil.rmtree(folder)
    return 0 if survived else 1


def report(records: list[dict], seconds: float, seed: int) -> None:
    """A table of faults, and how the processes that met them ended."""
    met, survived, ends = Counter(), Counter(), Counter()
    for record in records:
        met.update(record["faults"])
        survived.update(record["faults"] * record["survived"])
        ends.update(record["ends"][:-1])
    print(machine.describe("orbax-checkpoint"))
    print(
        f"seed {seed}: {sum(r['survived'] for r in records)} of {len(records)} runs ended equal to "
        f"the undisturbed one bit for bit, after {sum(met.values())} faults, in {seconds:.0f} s\n"
    )
    print("| fault | met | survived |\n|---|---|---|")
    for fault in sorted(met):
        print(f"| {fault.replace('_', ' ')} | {met[fault]} | {survived[fault]} |")
    print(f"\nprocesses ended: {', '.join(f'{n} x {end}' for end, n in ends.most_common())}")


if __name__ == "__main__":
    sys.exit(main())
