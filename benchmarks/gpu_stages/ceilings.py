"""What this GPU gives at best: a copy of its memory, and the step's matrix products alone.

The products are those of (B*T, C) activations with each weight matrix: forward x w^T, backward
dout w and dout^T x. PyTorch's give bfloat16 throughout; ours, as in the step, float32 for the
gradient of wte. Random data: products of zeros are faster.
"""

from functools import partial

from benchmarks.gpu_stages import results, stage, timing
from benchmarks.gpu_stages.sizes import KINDS, gemms, rates, sizes
from benchmarks.gpu_stages.stage import Row, need


def rows() -> list[Row]:
    names = [(name, kind) for name in gemms() for kind in KINDS]
    return [
        Row("copy", "torch", copy_torch, 30),
        *(
            Row(f"gemm {name} {kind}", by, partial(product, name, kind), 30)
            for by, product in (("torch", product_torch), ("jax", product_jax))
            for name, kind in names
        ),
        Row("copy", "jax", copy_jax, 30),
    ]


def copied(ms: float) -> dict:
    return dict(ms=round(ms, 4), tbs=round(2 * sizes().copy_bytes / ms / 1e9, 3))


def copy_torch() -> dict:
    need("torch")
    import torch

    device = results.torch_device()
    source = torch.randn(sizes().copy_bytes // 4, device=device)
    target = torch.empty_like(source)
    return copied(timing.of_torch(target.copy_, [source]))


def copy_jax() -> dict:
    import jax
    import jax.numpy as jnp

    source = jax.random.normal(jax.random.key(0), (sizes().copy_bytes // 4,), jnp.float32)
    return copied(timing.of_jax(jax.jit(lambda x: -x), [source]))


def shapes(name: str, kind: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of the two factors as they lie in memory."""
    N, (OC, C) = sizes().B * sizes().T, gemms()[name]
    return {"fwd": ((N, C), (OC, C)), "dgrad": ((N, OC), (OC, C)), "wgrad": ((N, OC), (N, C))}[kind]


def product_torch(name: str, kind: str) -> dict:
    need("torch")
    import torch

    device = results.torch_device()
    multiply = {
        "fwd": lambda ab: ab[0] @ ab[1].T,
        "dgrad": lambda ab: ab[0] @ ab[1],
        "wgrad": lambda ab: ab[0].T @ ab[1],
    }[kind]
    sets = [
        [torch.randn(s, device=device, dtype=torch.bfloat16) for s in shapes(name, kind)]
        for _ in range(timing.SETS)
    ]
    return rates(f"gemm {name}", timing.of_torch(multiply, sets))


def product_jax(name: str, kind: str) -> dict:
    import jax
    import jax.numpy as jnp

    from llmc_jax.ops.matmul import dot, rounded_dot

    contract = {"fwd": (1, 1), "dgrad": (1, 0), "wgrad": (0, 0)}[kind]
    by = dot if (name, kind) == ("logits", "wgrad") else rounded_dot
    multiply = jax.jit(lambda ab: by(*ab, contract))
    sets = [
        [
            jax.random.normal(jax.random.key(10 * seed + i), s, jnp.bfloat16)
            for i, s in enumerate(shapes(name, kind))
        ]
        for seed in range(timing.SETS)
    ]
    return rates(f"gemm {name}", timing.of_jax(multiply, sets))


if __name__ == "__main__":
    stage.run("ceilings", rows)
