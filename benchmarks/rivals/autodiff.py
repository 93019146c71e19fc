"""The same GPT-2 as plain JAX would have it: jax.value_and_grad and optax, layers in lax.scan.

A contestant of python -m llmc_jax.bench. It reads the package's parameters and nothing else of
its training.
"""

import jax
import jax.numpy as jnp
import optax

from llmc_jax.contestant import Task, serve
from llmc_jax.models.initialize import initialize


def layernorm(x, weight, bias):
    x32 = x.astype(jnp.float32)
    mean = x32.mean(-1, keepdims=True)
    variance = jnp.square(x32 - mean).mean(-1, keepdims=True)
    return ((x32 - mean) * jax.lax.rsqrt(variance + 1e-5) * weight + bias).astype(x.dtype)


def attention(qkv, NH):
    B, T, C = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = jnp.moveaxis(qkv.reshape(B, T, 3, NH, C // NH), 2, 0)
    return jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(B, T, C)


def loss_fn(params, inputs, targets, *, NH, dtype):
    """Mean cross-entropy; inputs, targets (B,T)."""
    params = jax.tree.map(lambda p: p.astype(dtype) if p.ndim >= 2 else p, params)

    def block(x, p):
        qkv = layernorm(x, p.ln1w, p.ln1b) @ p.qkvw.T + p.qkvb
        x = x + attention(qkv.astype(dtype), NH) @ p.attprojw.T + p.attprojb
        h = jax.nn.gelu(layernorm(x, p.ln2w, p.ln2b) @ p.fcw.T + p.fcb)
        return (x + h @ p.fcprojw.T + p.fcprojb).astype(dtype), None

    x = params.wte[inputs] + params.wpe[: inputs.shape[1]]
    x, _ = jax.lax.scan(block, x, params.block)
    logits = (layernorm(x, params.lnfw, params.lnfb) @ params.wte.T).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def make_step(params, *, NH, dtype, learning_rate, weight_decay):
    """A jitted, donated step(state, inputs, targets) -> (state, loss), and its first state."""
    matrices = jax.tree.map(lambda p: p.ndim >= 2, params)._replace(
        block=jax.tree.map(lambda p: p.ndim >= 3, params.block)
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(learning_rate, b1=0.9, b2=0.95, weight_decay=weight_decay, mask=matrices),
    )

    def step(state, inputs, targets):
        params, opt_state = state
        loss, grads = jax.value_and_grad(loss_fn)(params, inputs, targets, NH=NH, dtype=dtype)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    return jax.jit(step, donate_argnums=0), (params, optimizer.init(params))


def stack_layers(params):
    """The parameters with those of all layers stacked, as lax.scan takes them."""
    block = jax.tree.map(lambda *layers: jnp.stack(layers), *params.block)
    return jax.tree.map(jnp.asarray, params._replace(block=block))


def prepare(task: Task):
    """A function that makes one step and returns its loss."""
    update, state = make_step(
        stack_layers(initialize(task.model, task.seed)),
        NH=task.model.NH,
        dtype=jnp.dtype(task.dtype),
        learning_rate=task.learning_rate,
        weight_decay=task.weight_decay,
    )
    batch = jax.device_put(task.batch())

    def step() -> float:
        nonlocal state
        state, loss = jax.block_until_ready(update(state, *batch))
        return float(loss)

    return step


if __name__ == "__main__":
    serve(prepare)
