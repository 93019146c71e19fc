"""Initial parameters are llm.c's (golden numbers), without PyTorch."""

import numpy as np
import pytest

from llmc_jax.config import MODELS
from llmc_jax.models.initialize import initialize
from tests import tiny
from tests.golden import by_name, read


@pytest.fixture(scope="module")
def params():
    return by_name(initialize(MODELS["d12"], 42))


@pytest.mark.parametrize("name", read("d12_seed42_b4t64")["params_seed42_d12"])
def test_every_tensor_is_llm_cs(params, name):
    golden, ours = read("d12_seed42_b4t64")["params_seed42_d12"][name], params[name]
    assert list(ours.shape) == golden["shape"]
    np.testing.assert_allclose(ours.ravel()[:8], golden["first8"], atol=1e-6, rtol=0)
    wide = ours.astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(wide), golden["l2"], rtol=1e-6)
    # the sum of n rounding errors of 1e-8 is far below 1e-6 a number
    np.testing.assert_allclose(wide.sum(), golden["sum"], atol=1e-6 * np.sqrt(ours.size))


def test_padding_is_zero_and_another_seed_gives_others():
    first, second = initialize(tiny.MODEL, 42), initialize(tiny.MODEL, 43)
    assert not first.wte[tiny.MODEL.V :].any()
    assert not np.any(first.wte[: tiny.MODEL.V] == second.wte[: tiny.MODEL.V])
