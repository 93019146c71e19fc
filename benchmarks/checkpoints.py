"""What a checkpoint of d12 costs, against a plain NumPy dump of the same arrays.

    python benchmarks/checkpoints.py [--folder=/where/the/disk/is]

Saving: from the call until all is on the disk, checksums included; `blocks` is how long the call
takes, all that training waits for. Restoring: every byte compared with its checksum, arrays on the
device. The dump is numpy.save and numpy.load of each array, and once more with fsync, without
which nothing says that the bytes are on the disk. In turn, medians. Both are read in a new process,
as by a run that resumes: in one that has freed as much memory before, most of it need not be mapped
again, which is half of the time. And both out of the page cache: they are read once before. Each is
the first of the two in every other round: memory that a process has just given back costs less.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from llmc_jax import machine, ops
from llmc_jax.config import TrainConfig, model_config
from llmc_jax.models.initialize import initialize
from llmc_jax.training import parallel, placement
from llmc_jax.training.checkpoint import Checkpointer
from llmc_jax.training.rooms import make_rooms
from llmc_jax.training.step import init_state, state_shapes

MODEL = model_config("d12")


def make_state(mesh):
    """A state like that of a run: moments that are not zero."""
    state = init_state(initialize(MODEL, 42))
    state = state._replace(
        m=jax.tree.map(lambda p: 0.1 * p, state.params),
        v=jax.tree.map(lambda p: p * p, state.params),
    )
    return placement.replicate(state, mesh)


def timed(work, *args, **options) -> float:
    began = time.perf_counter()
    work(*args, **options)
    return time.perf_counter() - began


def dump(state, folder: Path, *, sync: bool) -> None:
    folder.mkdir()
    for number, leaf in enumerate(jax.tree.leaves(state)):
        with open(folder / f"{number}.npy", "wb") as file:
            np.save(file, np.asarray(leaf))
            if sync:
                file.flush()
                os.fsync(file.fileno())


def load(folder: Path, count: int, mesh) -> None:
    leaves = [np.load(folder / f"{number}.npy") for number in range(count)]
    jax.block_until_ready(placement.replicate(leaves, mesh))


def save_and_restore(state, place: Path, number: int) -> dict[str, float]:
    """Seconds of one round of everything."""
    took = {}
    took["dump"] = timed(dump, state, place / "dump", sync=False)
    shutil.rmtree(place / "dump")
    took["dump, fsync"] = timed(dump, state, place / "dump", sync=True)
    checkpoints = Checkpointer(place / "checkpoints")
    checkpoints.reserve(state)
    checkpoints.wait()
    began = time.perf_counter()
    checkpoints.save(state, {}, 1)
    took["blocks"] = time.perf_counter() - began
    checkpoints.wait()
    took["save"] = time.perf_counter() - began
    assert checkpoints.take_failure() is None
    del checkpoints
    for what in ("load", "restore") if number % 2 else ("restore", "load"):
        command = [sys.executable, __file__, f"--folder={place}", f"--read={what}"]
        took[what] = float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    files = (place / "checkpoints").rglob("*")
    took["MiB"] = sum(f.stat().st_size for f in files if f.is_file()) / 2**20
    shutil.rmtree(place / "dump")
    shutil.rmtree(place / "checkpoints")
    return took


def read(what: str, place: Path, mesh) -> float:
    """Seconds for the arrays of the dump (load) or of the checkpoint (restore) to the device."""
    like = placement.replicated_like(state_shapes(MODEL), mesh)
    jax.block_until_ready(placement.replicate(np.zeros(1), mesh))
    if what == "load":
        into_page_cache(place / "dump")
        return timed(load, place / "dump", len(jax.tree.leaves(like)), mesh)
    into_page_cache(place / "checkpoints")
    checkpoints = Checkpointer(place / "checkpoints")
    return timed(lambda: jax.block_until_ready(checkpoints.restore_state(1, like)))


def into_page_cache(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb", buffering=0) as file:
                while file.read(1 << 20):
                    pass


def step_seconds(state, mesh, T: int) -> float:
    """A step of d12 with B=4 in bf16, the smallest that llm.c's defaults make."""
    cfg = TrainConfig(sequence_length=T, dtype="bfloat16", max_steps=10, total_batch_size=4 * T)
    chosen, _ = ops.select("auto", jax.default_backend())
    step = parallel.map_train_step(chosen, MODEL, cfg, mesh)
    rooms = make_rooms(chosen, MODEL, cfg, mesh)
    tokens = np.random.default_rng(0).integers(0, MODEL.V, (1, 4, T)).astype(np.int32)
    batch = placement.split((tokens, tokens), mesh, placement.MICRO_BATCHES)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        state, rooms, metrics = step(state, rooms, *batch)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="where to write; by default the system's temporary folder")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--read", choices=["load", "restore"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    mesh = parallel.make_mesh()
    if args.read:
        print(read(args.read, Path(args.folder), mesh))
        return
    state = make_state(mesh)
    print(machine.describe("orbax-checkpoint"))
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        rounds = [save_and_restore(state, Path(place), n) for n in range(args.rounds + 1)][1:]
    took = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    for name, value in took.items():
        lowest, highest = (f(r[name] for r in rounds) for f in (min, max))
        print(f"{name}: {value:.3f} ({lowest:.3f} to {highest:.3f})")
    print(f"save / dump with fsync: {took['save'] / took['dump, fsync']:.2f}")
    print(f"save / dump without: {took['save'] / took['dump']:.2f}")
    print(f"restore / load: {took['restore'] / took['load']:.2f}")
    seconds = step_seconds(state, mesh, 1024)
    print(f"step, B=4, T=1024: {seconds:.2f} s; blocked for {took['blocks'] / seconds:.1%} of it")


if __name__ == "__main__":
    main()
