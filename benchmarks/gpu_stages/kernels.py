"""Each pass of each op at the step's size, alone: our kernels, and jnp as XLA compiles it."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.gpu_stages import jax_ops, stage, timing
from benchmarks.gpu_stages.sizes import rates, sizes, uses
from benchmarks.gpu_stages.stage import Row
from llmc_jax.models import gpt2
from llmc_jax.ops import gelu
from llmc_jax.ops.adamw import Hyper
from llmc_jax.ops.op import run_kernel

DTYPE = jnp.bfloat16
# What is matrix products for the most part is timed last, in case the time is over.
ORDER = ("attention", "classifier", "encoder", "residual_layernorm", "layernorm")


def rows() -> list[Row]:
    others = [name for name in uses() if name not in ORDER]
    return [
        *(row for name in ORDER for row in rows_of(name)),
        Row("gelu forward", "jnp", time_gelu_forward),
        *(
            Row("gelu backward", by, partial(time_gelu_backward, by))
            for by in [*jax_ops.kernels("mlp"), "jnp"]
        ),
        *(Row("adamw", by, partial(time_adamw, by)) for by in [*jax_ops.kernels("adamw"), "jnp"]),
        *(
            Row("global_norm", by, partial(time_global_norm, by))
            for by in [*jax_ops.kernels("global_norm"), "jnp"]
        ),
        *(row for name in others for row in rows_of(name)),
    ]


def rows_of(name: str) -> list[Row]:
    """Of one of uses(), each pass by each implementation."""
    op = uses()[name].op
    kernels = jax_ops.kernels(op)
    listed = [
        Row(f"{name} {way}", by, partial(time_pass, name, by, way))
        for by in [*kernels, "jnp"]
        for way in (("both",) if op == "classifier" else ("forward", "backward"))
    ]
    if op == "classifier":
        listed += [
            Row("classifier in place", by, partial(time_in_place, by))
            for by in kernels
            if by in ("cuda", "emulated")  # it is one kernel, whoever calls it
        ]
    return listed


def time_pass(name: str, by: str, way: str) -> dict:
    op, case, *_ = uses()[name]
    problems = [jax_ops.make_problem(op, case, DTYPE, seed) for seed in range(timing.SETS)]
    if way == "both":
        run = jax_ops.both(op, by, case)
        ms = timing.of_jax(lambda problem: run(*problem), problems)
    elif way == "forward":
        run = jax_ops.forward(op, by, case)
        ms = timing.of_jax(lambda problem: run(*problem.inputs), problems)
    else:
        sets = [jax_ops.backward_arguments(op, by, case, problem) for problem in problems]
        ms = timing.of_jax(jax_ops.backward(op, by, case), sets)
    return rates(f"{name} {way}", ms)


def time_in_place(by: str) -> dict:
    """The classifier's kernel without its matrix product. After a set's first turn its logits are
    gradients: as many bytes and exponentials, of smaller numbers."""
    jax_ops.implementation("classifier", by)
    B, T, model, *_ = sizes()
    N, V, Vp = B * T, model.V, model.Vp
    keys = jax.random.split(jax.random.key(0), timing.SETS + 1)
    targets = jax.random.randint(keys[0], (N,), 0, V, jnp.int32)
    dlosses = jnp.full((N,), 1 / N, jnp.float32)
    results = (jax.ShapeDtypeStruct((N,), jnp.float32), jax.ShapeDtypeStruct((N, Vp), DTYPE))

    def kernel(logits, targets, dlosses):
        return run_kernel(
            "llmc_cuda_classifier_forward", results, logits, targets, dlosses, aliases={0: 1}, V=V
        )

    run = jax.jit(kernel, donate_argnums=0)
    sets = [[jax.random.normal(key, (N, Vp), DTYPE)] for key in keys[1:]]

    def call(own: list):
        losses, own[0] = run(own[0], targets, dlosses)
        return losses

    return rates("classifier in place", timing.of_jax(call, sets))


def hidden() -> list[tuple]:
    """Pairs of activations of the MLP's hidden layer."""
    B, T, model, *_ = sizes()
    keys = jax.random.split(jax.random.key(0), 2 * timing.SETS)
    xs = [jax.random.normal(key, (B, T, 4 * model.C), DTYPE) for key in keys]
    return list(zip(xs[::2], xs[1::2], strict=True))


def time_gelu_forward() -> dict:
    run = jax.jit(lambda pair: gelu.forward(pair[0])[0])
    return rates("gelu forward", timing.of_jax(run, hidden()))


def time_gelu_backward(by: str) -> dict:
    """With the gradient of the bias before it, which our kernel makes on the way."""
    jax_ops.implementation("mlp", by)

    def backward(inp, dout):
        if by != "jnp":
            return gelu.cuda_backward(dout, inp, again=False)[:2]
        (dinp,) = gelu.backward((), dout, inp)
        return dinp, jnp.sum(dinp.astype(jnp.float32), axis=(0, 1))

    run = jax.jit(lambda pair: backward(*pair))
    return rates("gelu backward", timing.of_jax(run, hidden()))


def random_like(shapes, seed: int, scale: float):
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(seed), len(leaves))

    def make(key, x):
        return (scale * jax.random.normal(key, x.shape)).astype(x.dtype)

    # One by one: of layers alike it is compiled once, and together it takes minutes.
    return tree.unflatten(map(make, keys, leaves))


def gradients(seed: int):
    return random_like(gpt2.gradient_shapes(sizes().model, DTYPE), seed, 1e-3)


# AdamW and the norm are run so many times in one call: Python takes longer to hand over their
# hundreds of arrays than a GPU to read them.
REPEATS = 10


def time_global_norm(by: str) -> dict:
    norm = jax_ops.implementation("global_norm", by)

    @jax.jit
    def run(grads):
        def again(_, before):
            # of gradients that wait for the norm before: else one is made, for all times
            same, _ = lax.optimization_barrier((grads, before))
            return norm(same)

        return lax.fori_loop(0, REPEATS, again, jnp.float32(0))

    sets = [gradients(seed) for seed in range(timing.SETS)]
    return rates("global_norm", timing.of_jax(run, sets) / REPEATS)


def time_adamw(by: str) -> dict:
    chosen = jax_ops.implementation("adamw", by)
    hyper = Hyper(jnp.float32(1e-4), jnp.float32(1), jnp.int32(3), 0.9, 0.95, 1e-8)
    params, m = (random_like(gpt2.shapes(sizes().model), seed, 0.02) for seed in range(2))
    grads = gradients(2)
    decay = jax.tree.map(lambda p: 0.1 if gpt2.is_matrix(p) else 0.0, params)

    @partial(jax.jit, donate_argnums=0)
    def run(state, grads):
        def update(_, state):
            p, m, v = state
            return chosen(p, grads, m, v, hyper, weight_decay=decay)

        return lax.fori_loop(0, REPEATS, update, state)

    state = [(params, m, jax.tree.map(jnp.square, m))]

    def call(own: list):  # the 2 GB of state and gradients are many times the cache
        own[0] = run(own[0], grads)
        return own[0]

    return rates("adamw", timing.of_jax(call, [state]) / REPEATS)


if __name__ == "__main__":
    stage.run("kernels", rows)
