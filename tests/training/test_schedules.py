"""Learning rates: llm.c's curves at points worked out by hand."""

import jax
import numpy as np
import pytest

from llmc_jax.config import TrainConfig
from llmc_jax.training.schedules import learning_rate


def rates(steps, **options):
    cfg = TrainConfig(
        max_steps=20, learning_rate=1.0, warmup_steps=4, final_lr_fraction=0.1, **options
    )
    return jax.vmap(lambda step: learning_rate(step, cfg))(np.array(steps))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # steps 0, 3 (warm-up), 4 (start), 12 (half way from 4 to 20), 20 (end)
        ("cosine", [0.25, 1, 1, 0.55, 0.1]),
        ("linear", [0.25, 1, 1, 0.55, 0.1]),
        ("constant", [0.25, 1, 1, 1, 1]),
        ("wsd", [0.25, 1, 1, 1, 0.1]),
    ],
)
def test_curves(schedule, expected):
    np.testing.assert_allclose(rates([0, 3, 4, 12, 20], lr_schedule=schedule), expected, rtol=1e-6)


def test_cosine_and_linear_differ_between():
    np.testing.assert_allclose(rates([8], lr_schedule="linear"), [0.1 + 0.9 * 0.75], rtol=1e-6)
    cosine = 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi / 4))
    np.testing.assert_allclose(rates([8], lr_schedule="cosine"), [cosine], rtol=1e-6)


def test_wsd_decays_with_the_root_over_the_last_fifth():
    np.testing.assert_allclose(
        rates([16, 17, 18], lr_schedule="wsd"),
        [1, 0.1 + 0.9 * (1 - np.sqrt(1 / 4)), 0.1 + 0.9 * (1 - np.sqrt(2 / 4))],
        rtol=1e-6,
    )
