"""The TPU's row of ops without a TPU: kernels in Pallas' TPU interpret mode against jnp, and the
whole step lowered for TPUs, the kernels in it named. What a TPU makes of it is not tested."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from llmc_jax import ops
from llmc_jax.config import ModelConfig, TrainConfig
from llmc_jax.ops import attention, classifier
from llmc_jax.training import parallel
from llmc_jax.training.step import state_shapes

KERNELS = {"_flash_attention_kernel", "_flash_attention_dkv_kernel", "_flash_attention_dq_kernel"}


def test_flash_attention_is_attention():
    """T is no multiple of a block on purpose: what is added takes no part, forward or backward."""
    NH, HS, T = 1, 64, 100
    rng = np.random.default_rng(0)
    qkv = jnp.asarray(rng.normal(size=(1, T, 3 * NH * HS)), jnp.float32)
    dout = jnp.asarray(rng.normal(size=(1, T, NH * HS)), jnp.float32)

    def forward_and_backward(op):
        out, saved = op.forward(qkv, NH=NH)
        return out, *op.backward(saved, dout, qkv, NH=NH)

    with pltpu.force_tpu_interpret_mode():
        results = forward_and_backward(ops.TABLE["attention"]["pallas"])
    for result, wanted in zip(results, forward_and_backward(attention.JNP), strict=True):
        assert result.dtype == wanted.dtype and result.shape == wanted.shape
        np.testing.assert_allclose(result, wanted, atol=1e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("chunk", [4, 6, 100])
def test_classifier_in_chunks_is_the_classifier(chunk):
    """Chunks that divide the 20 rows, that leave some over, and that are more than there are."""
    rng = np.random.default_rng(0)
    lnf, wte = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((4, 5, 8), (16, 8)))
    targets = jnp.asarray(rng.integers(-1, 11, (4, 5)), jnp.int32)
    dlosses = jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)
    inputs = (lnf, wte, targets, dlosses)
    losses, saved = jax.jit(
        partial(classifier.chunked_forward, classifier.forward, V=11, chunk=chunk)
    )(*inputs)
    wanted, of_whole = classifier.forward(*inputs, V=11)
    np.testing.assert_allclose(losses, wanted, rtol=1e-5, atol=1e-6)
    gradients = classifier.saved_gradients(saved, dlosses, *inputs, V=11)
    whole = classifier.backward(of_whole, dlosses, *inputs, V=11)
    for one, other in zip(gradients, whole, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    only = partial(classifier.chunked_forward, classifier.forward, V=11, chunk=chunk)
    losses, nothing = jax.jit(only)(lnf, wte, targets, None)
    np.testing.assert_allclose(losses, wanted, rtol=1e-5, atol=1e-6)
    assert nothing is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_whole_step_lowers_for_tpus(monkeypatch, dtype):
    """With the kernels of attention as its only custom calls, and no (T, T) or (N, Vp) array."""
    monkeypatch.setattr(parallel, "UNCHECKED", ("cpu",))  # which stands for the TPU here
    model = ModelConfig(L=2, NH=2, C=128, maxT=256, V=1000, Vp=1024)
    chosen, names = ops.select("auto", "tpu")
    assert names["attention"] == "pallas" and names["classifier"] == "chunked"
    assert set(names.values()) == {"jnp", "pallas", "chunked"}
    small = partial(classifier.chunked_forward, classifier.forward, chunk=128)
    chosen = chosen._replace(classifier=chosen.classifier._replace(forward=small))
    cfg = TrainConfig(
        batch_size=2, sequence_length=256, total_batch_size=512, max_steps=9, schedule_steps=9,
        dtype=dtype,
    )  # fmt: skip
    state = state_shapes(model)
    batch = jax.ShapeDtypeStruct((1, 2, 256), jnp.int32)
    mapped = parallel.map_train_step(chosen, model, cfg, parallel.make_mesh())
    traced = mapped.trace(state, [], batch, batch)
    program = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert set(re.findall(r"custom_call @(\w+)", program)) == {"tpu_custom_call"}
    assert set(re.findall(r'kernel_name = "([^"]*)"', program)) == KERNELS
    shapes = set(re.findall(r"tensor<([0-9x]+)x(?:f32|bf16)>", program))
    assert {shape for shape in shapes if shape.endswith(("256x256", "512x1024"))} == set()
    assert "128x1024" in shapes  # the logits of a chunk


def test_ops_of_other_platforms_are_refused_by_name():
    for spec, platform in (("attention=pallas", "cpu"), ("attention=cuda", "tpu")):
        with pytest.raises(ValueError, match="has no implementation"):
            ops.select(spec, platform)
    assert ops.select("classifier=chunked", "cpu")[1]["classifier"] == "chunked"
