"""Our kernels once each at tiny shapes: what compute-sanitizer runs."""

from functools import partial

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks.gpu_stages import correctness, jax_ops
from llmc_jax.ops import cases, gelu

LEAVE_OUT = flags.DEFINE_list("leave_out", [], "ops that are not run")

CASES = {
    "classifier": cases.classifier(1, 5, 16, 1001, 1024),
    "encoder": cases.encoder(2, 33, 48, 5, 100),
    "attention": cases.attention(1, 65, 2, 64),
    "layernorm": cases.layernorm(1, 9, 768),
    "residual_layernorm": cases.residual_layernorm(1, 9, 768),
    "matmul": cases.matmul(1, 9, 64, 192),
    "mlp": cases.mlp(1, 9, 64),
}


def main(_) -> None:
    """mlp last: memcheck's process has died in its products, which are cuBLAS'."""
    for check in (check_gelu, correctness.check_global_norm, correctness.check_adamw):
        op = check.__name__.removeprefix("check_")
        for name in jax_ops.kernels("mlp" if op == "gelu" else op):
            check(name)
            print(f"ran {op}={name}", flush=True)
    for op in CASES:
        if op not in LEAVE_OUT.value:
            run(op)


def run(op: str) -> None:
    """Both ways of all our implementations."""
    for name in jax_ops.kernels(op):
        if name != "cudnn":  # not ours
            jax_ops.implementation(op, name)
            inputs, dout = correctness.make_problem(op, CASES[op], "bfloat16", 0)
            jax.block_until_ready(jax_ops.both(op, name, CASES[op])(inputs, dout))
            print(f"ran {op}={name}", flush=True)


def check_gelu(name: str) -> None:
    """The kernel in mlp's backward, with and without gelu(fch) made again."""
    jax_ops.implementation("mlp", name)
    dout, fch = jax.random.normal(jax.random.key(0), (2, 1, 9, 256), jnp.bfloat16)
    for again in (False, True):
        jax.block_until_ready(jax.jit(partial(gelu.cuda_backward, again=again))(dout, fch))


if __name__ == "__main__":
    app.run(main)
