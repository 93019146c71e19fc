"""Shapes to try each op on: data shared by tests and benchmarks, so that a new op gets both."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from llmc_jax.ops.op import accumulation_dtype


class Spec(NamedTuple):
    """One input of an op.

    kind: "tensor" has the dtype under test, "vector" its accumulation dtype; both get a gradient.
    "tokens" are int32 below `below`, "targets" the same with some -1; "constant" is float32 and
    without a gradient.
    """

    kind: str
    shape: tuple[int, ...]
    below: int = 0


class Case(NamedTuple):
    """One call of an op's forward and backward."""

    inputs: tuple[Spec, ...]
    static: dict = {}
    dout: int | None = None  # input that is also the gradient of the output; None: random

    def differentiable(self) -> tuple[int, ...]:
        """Indices of the inputs that backward returns a gradient for."""
        return tuple(i for i, s in enumerate(self.inputs) if s.kind in ("tensor", "vector"))


def make_inputs(case: Case, dtype, seed: int = 0) -> list:
    """Random inputs for `case`; values of a tensor are exact in bfloat16, so that the same case in
    another dtype is the same problem."""
    rng = np.random.default_rng(seed)
    return [_make(spec, dtype, rng) for spec in case.inputs]


def _make(spec: Spec, dtype, rng):
    if spec.kind in ("tokens", "targets"):
        tokens = rng.integers(0, spec.below, spec.shape).astype(np.int32)
        if spec.kind == "targets":
            tokens = np.where(rng.random(spec.shape) < 0.3, -1, tokens)
        return jnp.asarray(tokens, jnp.int32)
    values = jnp.asarray(rng.normal(size=spec.shape), jnp.float32).astype(jnp.bfloat16)
    if spec.kind == "constant":
        return values.astype(jnp.promote_types(jnp.float32, accumulation_dtype(dtype)))
    return values.astype(dtype if spec.kind == "tensor" else accumulation_dtype(dtype))


def tensor(*shape) -> Spec:
    return Spec("tensor", shape)


def vector(*shape) -> Spec:
    return Spec("vector", shape)


def _encoder(B, T, C, Vp, maxT):
    return Case((Spec("tokens", (B, T), Vp), tensor(Vp, C), tensor(maxT, C)))


def _layernorm(B, T, C):
    return Case((tensor(B, T, C), vector(C), vector(C)), dict(eps=1e-5))


def _matmul(B, T, C, OC):
    return Case((tensor(B, T, C), tensor(OC, C), vector(OC)))


def _attention(B, T, NH, HS):
    return Case((tensor(B, T, 3 * NH * HS),), dict(NH=NH))


def _classifier(B, T, C, V, Vp):
    targets, dlosses = Spec("targets", (B, T), V), Spec("constant", (B, T))
    return Case((tensor(B, T, C), tensor(Vp, C), targets, dlosses), dict(V=V), dout=3)


# op -> cases. Odd on purpose: T = 1, C not a multiple of 8, tiles not filled, a padded vocabulary.
CASES = {
    "encoder": (_encoder(2, 5, 12, 40, 8), _encoder(1, 1, 7, 11, 1), _encoder(4, 64, 32, 300, 64)),
    "layernorm": (_layernorm(2, 5, 12), _layernorm(1, 1, 7), _layernorm(3, 33, 100)),
    "matmul": (_matmul(2, 5, 12, 36), _matmul(1, 1, 7, 3), _matmul(2, 33, 48, 20)),
    "gelu": (Case((tensor(2, 5, 12),)), Case((tensor(1, 1, 7),)), Case((tensor(3, 33, 100),))),
    "attention": (
        _attention(2, 5, 3, 4),
        _attention(1, 1, 1, 7),
        _attention(2, 64, 2, 16),
        _attention(1, 65, 3, 16),
        _attention(1, 200, 2, 24),
    ),
    "classifier": (
        _classifier(2, 5, 12, 60, 64),
        _classifier(1, 1, 7, 11, 11),
        _classifier(2, 6, 16, 50257, 50304),
    ),
}
