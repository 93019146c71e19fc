"""The training step with CUDA kernels, without a GPU: run by the emulator, and lowered for CUDA."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmc_jax import ffi, ops
from llmc_jax.models.initialize import initialize
from llmc_jax.training import parallel, placement
from llmc_jax.training.step import init_state, state_shapes
from tests import quick, tiny

# heads of a size that the kernels take
MODEL = dataclasses.replace(tiny.MODEL, NH=2, C=128)
B, T = 2, 24


def batch():
    rows = tiny.tokens(B * (T + 1)).astype(np.int32).reshape(1, B, T + 1)
    return rows[..., :-1], rows[..., 1:]


@functools.cache
def steps(spec: str, dtype: str, recompute: int):
    """(parameters, losses, norms) of two steps with the ops `spec`."""
    mesh = parallel.make_mesh()
    cfg = tiny.config(dtype=dtype, recompute=recompute, adam_eps=1e-3)
    chosen, _ = ops.select(spec, "cpu")
    step = parallel.map_train_step(chosen, MODEL, cfg, mesh)
    state = placement.replicate(init_state(initialize(MODEL, 42)), mesh)
    data = placement.split(batch(), mesh, placement.MICRO_BATCHES)
    step = quick.step(step.lower(state, [], *data), spec)
    metrics = []
    for _ in range(2):
        state, _, m = step(state, [], *data)
        metrics.append((float(m.loss), float(m.grad_norm)))
    return jax.device_get(state.params), np.array(metrics)


@pytest.mark.parametrize(
    ("dtype", "recompute", "tolerance"),
    [("float32", 0, 1e-5), ("float32", 4, 1e-5), ("bfloat16", 1, 2e-2)],
)
def test_two_steps_of_emulated_kernels_are_those_of_jnp(dtype, recompute, tolerance):
    params, metrics = steps("emulated", dtype, recompute)
    wanted_params, wanted = steps("jnp", dtype, 0)
    np.testing.assert_allclose(metrics, wanted, rtol=tolerance)
    before = initialize(MODEL, 42)
    for p, w, b in zip(*map(jax.tree.leaves, (params, wanted_params, before)), strict=True):
        # of a tensor as a whole: jnp's own bfloat16 moves single elements by a tenth of the largest
        moved = np.linalg.norm(np.asarray(w) - np.asarray(b))
        assert np.linalg.norm(np.asarray(p) - np.asarray(w)) <= 2 * tolerance * moved


@pytest.fixture(scope="module")
def lowered() -> str:
    """StableHLO of the whole step for CUDA, with every kernel there is."""
    if not ffi.available("cuda"):
        pytest.skip(ffi.status("gpu"))
    mesh = parallel.make_mesh()
    cfg = tiny.config(dtype="bfloat16", recompute=1)
    chosen, _ = ops.select("cuda", "gpu")
    step = parallel.map_train_step(chosen, MODEL, cfg, mesh)
    state = state_shapes(MODEL)
    data = (jax.ShapeDtypeStruct((1, B, T), jnp.int32),) * 2
    return step.trace(state, [], *data).lower(lowering_platforms=("cuda",)).as_text()


def calls(lowered: str, target: str) -> list[str]:
    return re.findall(rf"stablehlo\.custom_call @{target}\(.*", lowered)


def test_the_step_for_cuda_calls_every_kernel(lowered):
    for handler in ffi.CUDA_HANDLERS:
        if handler != "llmc_cuda_classifier_losses":  # where no gradient is wanted
            assert calls(lowered, handler), handler
    assert len(calls(lowered, "llmc_cuda_attention_forward")) == MODEL.L
    assert len(calls(lowered, "llmc_cuda_attention_backward")) == MODEL.L


def test_dlogits_are_written_over_the_logits(lowered):
    (call,) = calls(lowered, "llmc_cuda_classifier_forward")
    assert "output_operand_alias" in call and f"{B * T}x{MODEL.Vp}xbf16" in call


def test_attention_takes_qkv_as_the_product_left_it(lowered):
    """No transpose, slice or concatenation of an activation around it: packed in, packed out."""
    packed = rf"{B}x{T}x{3 * MODEL.C}xbf16"
    for word in ("transpose", "slice", "concatenate", "convert"):
        assert not re.findall(rf"stablehlo\.{word}\b.*tensor<{packed}>", lowered), word


def test_products_are_rounded_as_they_are_written(lowered):
    """All but that of dwte, a sum in float32: XLA:GPU would round others in a pass of its own."""
    results = re.findall(r"stablehlo\.dot_general .* -> tensor<([0-9x]+)x(f32|bf16)>", lowered)
    assert len(results) == 3 + 12 * MODEL.L
    assert [shape for shape, type in results if type == "f32"] == [f"{MODEL.Vp}x{MODEL.C}"]


def test_gradients_are_made_when_their_turn_comes(lowered):
    """Those of the head, then of each layer: XLA:GPU would leave them all to the end."""
    assert len(re.findall(r"stablehlo\.optimization_barrier", lowered)) == 1 + MODEL.L
