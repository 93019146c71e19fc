"""The batches of a run, on the devices: those of the steps, and those of a validation."""

from collections.abc import Callable, Iterator
from contextlib import closing

import jax
import numpy as np

from llmc_jax.config import TrainConfig
from llmc_jax.data.loader import TokenLoader
from llmc_jax.data.prefetch import prefetch
from llmc_jax.evaluation.scorer import IGNORED
from llmc_jax.training import placement
from llmc_jax.training.step import TrainState


def micro_batch_rows(cfg: TrainConfig, mesh) -> np.ndarray:
    """(A, rows): which sequences of a step this process's devices have in each micro-batch."""
    rows = cfg.total_batch_size // cfg.sequence_length
    micro_rows = cfg.batch_size * mesh.size
    own = placement.own_rows(mesh, micro_rows)
    return np.arange(rows).reshape(-1, micro_rows)[:, own]


def train_batches(loader: TokenLoader, cfg: TrainConfig, mesh, start: int) -> Iterator:
    """Inputs and targets (A, B*D, T) of each step from `start` on, on the devices, made ahead.

    Each process reads its rows only.
    """
    count = cfg.total_batch_size // cfg.sequence_length
    rows = micro_batch_rows(cfg, mesh)

    def make(step: int):
        position = 0 if cfg.overfit_single_batch else step * count
        batch = loader.read(position, count, rows=rows.reshape(-1))
        batch = tuple(x.reshape(*rows.shape, cfg.sequence_length) for x in batch)
        return placement.join(batch, mesh, placement.MICRO_BATCHES, mapper=cfg.mapper)

    return prefetch(make, range(start, cfg.max_steps))


def validate(
    evaluate,
    state: TrainState,
    loader: TokenLoader,
    cfg: TrainConfig,
    mesh,
    look: Callable[[], None] = lambda: None,
) -> float:
    """Mean loss over the first --val_batches batches of the validation data.

    They are the same sequences on any number of devices: what is missing in the last batch of all
    devices is ignored. (In llm.c's order, they are a batch for each device, as in llm.c.)
    look: called before each batch; what it raises ends the validation.
    """
    batch_rows = cfg.batch_size * mesh.size
    of_one = batch_rows if cfg.shuffle_order == "llmc" else cfg.batch_size
    wanted = loader.num_sequences if cfg.val_batches == -1 else cfg.val_batches * of_one
    count = min(wanted, loader.num_sequences)
    own = np.arange(batch_rows)[placement.own_rows(mesh, batch_rows)]

    def make(position: int):
        inputs, targets = loader.read(position, batch_rows, rows=own)
        targets[position + own >= count] = IGNORED
        return placement.join((inputs, targets), mesh, placement.ROWS)

    losses, pending = [], []
    with closing(prefetch(make, range(0, count, batch_rows))) as batches:
        for batch in batches:
            look()
            dispatched = evaluate(state.params, *batch)
            losses += jax.device_get(pending)  # waits, lest all be under way when somebody looks
            pending = [dispatched]
    losses += jax.device_get(pending)
    return float(np.mean(losses) * np.float32(len(losses) * batch_rows / count))
