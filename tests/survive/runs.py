"""What is asked of a run's folder, and done to it."""

import os
import signal
from pathlib import Path

from llmc_jax import train
from llmc_jax.training import parallel
from llmc_jax.training.checkpoint import Checkpointer
from llmc_jax.training.logger import read_metrics
from llmc_jax.training.run_dir import RunDir


def run_of(cfg) -> RunDir:
    return RunDir(Path(cfg.output_dir))


def steps(cfg) -> list[int]:
    return Checkpointer(run_of(cfg).checkpoints).steps()


def folder_of(cfg, step: int) -> Path:
    return run_of(cfg).checkpoints / f"{step:08d}"


def log(cfg) -> list[dict]:
    """metrics.jsonl without clocks."""
    lines = read_metrics(run_of(cfg).metrics)
    return [{k: v for k, v in m.items() if not k.endswith("_s")} for m in lines]


def damage(cfg, step: int) -> str:
    """Flip a bit in the largest file of a checkpoint; its name."""
    files = [path for path in folder_of(cfg, step).rglob("*") if path.is_file()]
    path = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    return path.relative_to(folder_of(cfg, step)).as_posix()


def interrupt_at(monkeypatch, step: int, number=signal.SIGTERM):
    """The process gets a signal while update `step` is being prepared."""
    real, calls = train.train_batch, []

    def batch(*args):
        calls.append(None)
        if len(calls) == step + 1:
            os.kill(os.getpid(), number)
        return real(*args)

    monkeypatch.setattr(train, "train_batch", batch)


def interrupt_validation(monkeypatch, number: int) -> list:
    """The process gets a SIGTERM in the batch of this number, from 1, that it validates; gives the
    numbers of those that it does validate."""
    real, numbers = parallel.map_eval_step, []

    def map_eval_step(*args):
        mapped = real(*args)

        def evaluate(*args):
            numbers.append(len(numbers) + 1)
            if numbers[-1] == number:
                os.kill(os.getpid(), signal.SIGTERM)
            return mapped(*args)

        return evaluate

    monkeypatch.setattr(parallel, "map_eval_step", map_eval_step)
    return numbers
