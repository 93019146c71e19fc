"""The rooms of a step: what lies in them, what they cost, and that nothing depends on them."""

import jax
import numpy as np
import pytest

from llmc_jax import ops
from llmc_jax.config import model_config
from llmc_jax.training import memory, placement, rooms
from tests import tiny
from tests.training.test_memory import compiled, config
from tests.training.test_step import batch, make_step

D6 = model_config("d6")


def planned(cfg, spec: str, monkeypatch, *, with_rooms: bool) -> tuple[int, int]:
    """(temporary bytes, all bytes) of a step of d6 by XLA."""
    if not with_rooms:
        monkeypatch.setattr(rooms, "rooms_like", lambda *_: [])
    step = compiled(ops.select(spec, "cpu")[0], D6, cfg)
    monkeypatch.undo()
    return step.memory_analysis().temp_size_in_bytes, memory.planned_bytes(step)


@pytest.mark.parametrize(
    ("cfg", "left", "added"),
    [
        (config(4, 256, dtype="bfloat16", recompute=3), 0.6, 0.002),  # powers of a chunk are left
        (config(4, 256, dtype="bfloat16", recompute=4), 0.6, 0.002),  # and gradients
        (config(1, 64, dtype="bfloat16"), 0.3, 0.05),  # the gradients have rooms
        (config(2, 256, A=3, dtype="bfloat16"), 0.3, 0.002),
    ],
    ids=["activations", "inputs of layers", "gradients", "micro-batches"],
)
def test_most_temporaries_lie_in_rooms_and_the_step_takes_no_more(cfg, left, added, monkeypatch):
    without, least = planned(cfg, "ffi", monkeypatch, with_rooms=False)
    temporary, everything = planned(cfg, "ffi", monkeypatch, with_rooms=True)
    assert temporary < left * without
    assert everything < (1 + added) * least


@pytest.mark.parametrize("A", [1, 2])
def test_numbers_do_not_depend_on_what_is_in_rooms(A):
    """Nor does a step without any give others."""
    data = batch(A, 4)
    states = []
    for fill in (None, 0.0, np.nan):
        step, state, own, mesh = make_step(A, 4, "ffi")
        assert len(own) > 10
        own = [] if fill is None else [jax.numpy.full_like(room, fill) for room in own]
        on_mesh = placement.split(data, mesh, placement.MICRO_BATCHES)
        for _ in range(2):
            state, own, metrics = step(state, own, *on_mesh)
        states.append(jax.device_get((state, metrics.loss)))
    for other in states[1:]:
        jax.tree.map(np.testing.assert_array_equal, states[0], other)


@pytest.mark.parametrize(
    ("platform", "devices", "options"), [("gpu", 1, {}), ("cpu", 2, dict(zero_stage=1))]
)
def test_where_there_are_none(platform, devices, options):
    chosen, _ = ops.select("jnp", "cpu")
    assert rooms.rooms_like(chosen, tiny.MODEL, tiny.config(), "cpu", 1)
    assert not rooms.rooms_like(chosen, tiny.MODEL, tiny.config(**options), platform, devices)
