"""d12 against numbers made by llm.c: one batch with all gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmc_jax import ffi, ops
from llmc_jax.config import MODELS
from llmc_jax.models import gpt2
from llmc_jax.models.initialize import initialize
from tests import golden

MODEL = MODELS["d12"]


@pytest.fixture(scope="module")
def batch():
    """The batch of d12_seed42_b4t64.json: 4 x 64 tokens from the start of the training split."""
    tokens = golden.tokens("train")[:257].astype(np.int32)
    inputs, targets = tokens[:-1].reshape(4, 64), tokens[1:].reshape(4, 64)
    reference = golden.read("d12_seed42_b4t64")["batch"]
    assert inputs.sum() == reference["x_sum"] and targets.sum() == reference["y_sum"]
    return jnp.asarray(inputs), jnp.asarray(targets)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(jnp.asarray, initialize(MODEL, 42))


@pytest.mark.parametrize("spec", ["jnp", "ffi"])
def test_logits(params, batch, spec):
    reference = golden.read("d12_seed42_b4t64")["logits"]
    chosen, _ = ops.select(spec, "cpu")
    logits = np.asarray(jax.jit(partial(gpt2.logits, chosen, cfg=MODEL))(params, batch[0]))
    np.testing.assert_allclose(
        np.linalg.norm(logits.astype(np.float64)), reference["l2"], rtol=1e-5
    )
    np.testing.assert_allclose(logits[0, 0, :8], reference["b0t0_first8"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(logits[3, 63, :8], reference["b3t63_first8"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("spec", "isa", "recompute"),
    [
        # other levels give the same numbers: tests/models/test_gpt2.py
        ("jnp", "auto", 0),
        # 1 is 0 to these kernels, which never keep the GELU
        *(("ffi", isa, recompute) for isa in ffi.supported_isas() for recompute in (0, 2)),
        ("ffi", "auto", 4),
    ],
)
def test_loss_and_gradients(params, batch, use_isa, spec, isa, recompute):
    use_isa(isa)
    reference = golden.read("d12_seed42_b4t64")
    chosen, _ = ops.select(spec, "cpu")

    @jax.jit
    def loss_and_grads(params, inputs, targets):
        dlosses = jnp.full(inputs.shape, 1 / inputs.size, jnp.float32)
        losses, acts = gpt2.forward(
            chosen, params, inputs, targets, dlosses, cfg=MODEL, recompute=recompute
        )
        grads = gpt2.backward(chosen, params, acts, dlosses, inputs, targets, cfg=MODEL)
        return jnp.mean(losses), grads

    loss, grads = loss_and_grads(params, *batch)
    np.testing.assert_allclose(loss, reference["loss"], rtol=1e-6)
    for name, grad in golden.by_name(grads).items():
        wanted = reference["grads"][name]
        norm = np.linalg.norm(grad.astype(np.float64))
        np.testing.assert_allclose(norm, wanted["l2"], rtol=1e-6, err_msg=name)
        scale = wanted["l2"] / np.sqrt(grad.size)
        np.testing.assert_allclose(
            grad.ravel()[:8], wanted["first8"], rtol=1e-3, atol=1e-3 * scale, err_msg=name
        )
