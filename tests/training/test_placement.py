"""Where arrays lie: the rows of each process, and what is whole already.

Several devices and processes: test_parallel.py and test_processes.py.
"""

import types

import jax.numpy as jnp

from llmc_jax import batches
from llmc_jax.training import parallel, placement
from tests import tiny


def test_own_rows_and_whole_of_one_device():
    mesh = parallel.make_mesh()
    assert placement.own_rows(mesh, 6) == slice(0, 6)
    x = jnp.arange(6.0).reshape(2, 3)
    assert placement.whole(x, (2, 3)) is x


def test_every_process_reads_only_its_rows(monkeypatch):
    """Two processes with two devices each; together their rows are those of one, in its order."""
    cfg = tiny.config(batch_size=3, total_batch_size=2 * 3 * 4 * 16)
    owners = [types.SimpleNamespace(process_index=number) for number in (0, 0, 1, 1)]
    mesh = types.SimpleNamespace(size=4, devices=owners)
    rows = []
    for number in range(2):
        monkeypatch.setattr(placement.jax, "process_index", lambda number=number: number)
        rows.append(batches.micro_batch_rows(cfg, mesh).tolist())
    assert rows == [
        [list(range(6)), list(range(12, 18))],
        [list(range(6, 12)), list(range(18, 24))],
    ]
