"""Our kernels once each at tiny shapes: what compute-sanitizer runs."""

import jax
from absl import app, flags

from benchmarks.gpu_stages import correctness, jax_ops
from llmc_jax.ops import cases

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
    for op, case in CASES.items():
        for name in jax_ops.kernels(op):
            if name != "cudnn" and op not in LEAVE_OUT.value:
                jax_ops.implementation(op, name)
                inputs, dout = correctness.make_problem(op, case, "bfloat16", 0)
                jax.block_until_ready(jax_ops.both(op, name, case)(inputs, dout))
                print(f"ran {op}={name}", flush=True)
    for op, check in (
        ("global_norm", correctness.check_global_norm),
        ("adamw", correctness.check_adamw),
    ):
        for name in jax_ops.kernels(op):
            check(name)
            print(f"ran {op}={name}", flush=True)


if __name__ == "__main__":
    app.run(main)
