"""What jnp's ops must not make XLA keep: its own plan of the compiled program says so."""

import jax
import jax.numpy as jnp

from llmc_jax import ops
from llmc_jax.ops.adamw import Hyper

JNP, _ = ops.select("jnp", "cpu")


def temporary(function, *args, donated=()) -> int:
    """Bytes beside arguments and results."""
    compiled = jax.jit(function, donate_argnums=donated).lower(*args).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_adamw_copies_no_moments():
    x = jax.ShapeDtypeStruct((512, 64), jnp.float32)

    def update(param, grad, m, v, lr, scale, step):
        hyper = Hyper(lr, scale, step, 0.9, 0.95, 1e-8)
        return JNP.adamw((param,), (grad,), (m,), (v,), hyper, weight_decay=(0.1,))

    scalars = [jax.ShapeDtypeStruct((), dtype) for dtype in (jnp.float32, jnp.float32, jnp.int32)]
    assert temporary(update, x, x, x, x, *scalars, donated=(0, 2, 3)) < 4 * x.size


def test_attention_keeps_no_probabilities_from_forward_to_backward():
    """Of layers on top of each other: each more takes less than the half of its probabilities."""
    B, T, NH, HS = 1, 128, 4, 4

    def planned(layers: int) -> int:
        def run(x, dx):
            kept = []
            for _ in range(layers):
                qkv = jnp.concatenate([x, 2 * x, 3 * x], axis=-1)
                out, saved = JNP.attention.forward(qkv, NH=NH)
                kept.append((saved, qkv))
                x = x + out
            for saved, qkv in reversed(kept):
                (dqkv,) = JNP.attention.backward(saved, dx, qkv, NH=NH)
                dq, dk, dv = jnp.split(dqkv, 3, axis=-1)
                dx = dx + dq + 2 * dk + 3 * dv
            return x, dx

        x = jax.ShapeDtypeStruct((B, T, NH * HS), jnp.float32)
        return temporary(run, x, x)

    assert planned(8) - planned(4) < 4 * (4 * B * NH * T * T) / 2
