"""Shapes to try each op on: data shared by tests and benchmarks, so that a new op gets both."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llmc_jax.config import ModelConfig
from llmc_jax.ops.op import accumulation_dtype


class Spec(NamedTuple):
    """One input of an op.

    kind: "tensor" has the dtype under test, "vector" its accumulation dtype; both get a gradient.
    "tokens" are int32 below `below`, "targets" the same with some -1; "constant" has the
    accumulation dtype and no gradient.
    """

    kind: str
    shape: tuple[int, ...]
    below: int = 0


class Case(NamedTuple):
    """One call of an op's forward and backward.

    The last three fields are for a backward that takes or returns something else than the
    contract in op.py says.
    """

    inputs: tuple[Spec, ...]
    static: dict[str, float]
    dout: int | None = None  # input that is also the gradient of the output; None: random
    sum: bool = False  # backward takes forward's first output for the first two inputs, its addends
    so_far: int | None = None  # input in whose place backward takes its gradient so far, to add to

    def gradients(self) -> tuple[int, ...]:
        """Indices of the inputs that backward returns a gradient for."""
        differentiable = [i for i, s in enumerate(self.inputs) if s.kind in ("tensor", "vector")]
        return tuple(i for i in differentiable if not (self.sum and i == 1))

    def backward_inputs(self, inputs: list, out) -> list:
        """What backward takes after saved and dout, where forward took `inputs` and gave `out`."""
        if self.sum:
            return [out[0], *inputs[2:]]
        if self.so_far is not None:  # any numbers will do: those of the input itself
            so_far = inputs[self.so_far]
            so_far = so_far.astype(accumulation_dtype(so_far.dtype))
            return [*inputs[: self.so_far], so_far, *inputs[self.so_far + 1 :]]
        return inputs


def make_inputs(case: Case, dtype, seed: int = 0) -> list:
    """Random inputs for `case`; values of a tensor are exact in bfloat16, so that the same case in
    another dtype is the same problem."""
    rng = np.random.default_rng(seed)
    likes = shapes(case, dtype)
    return [_make(spec, like.dtype, rng) for spec, like in zip(case.inputs, likes, strict=True)]


def _make(spec: Spec, dtype, rng):
    if spec.kind in ("tokens", "targets"):
        tokens = rng.integers(0, spec.below, spec.shape).astype(np.int32)
        if spec.kind == "targets":
            tokens = np.where(rng.random(spec.shape) < 0.3, -1, tokens)
        return jnp.asarray(tokens, dtype)
    # in numpy, for which nothing is compiled
    values = rng.normal(size=spec.shape).astype(np.float32).astype(jnp.bfloat16)
    return jnp.asarray(values.astype(dtype))


def tensor(*shape) -> Spec:
    return Spec("tensor", shape)


def vector(*shape) -> Spec:
    return Spec("vector", shape)


def encoder(B, T, C, Vp, maxT):
    return Case((Spec("tokens", (B, T), Vp), tensor(Vp, C), tensor(maxT, C)), {}, so_far=1)


def layernorm(B, T, C):
    return Case((tensor(B, T, C), vector(C), vector(C)), dict(eps=1e-5))


def residual_layernorm(B, T, C):
    inputs = (tensor(B, T, C), tensor(B, T, C), vector(C), vector(C))
    return Case(inputs, dict(eps=1e-5), sum=True)


def matmul(B, T, C, OC):
    return Case((tensor(B, T, C), tensor(OC, C), vector(OC)), {})


def attention(B, T, NH, HS):
    return Case((tensor(B, T, 3 * NH * HS),), dict(NH=NH))


def mlp(B, T, C):
    fc, fcproj = (tensor(4 * C, C), vector(4 * C)), (tensor(C, 4 * C), vector(C))
    return Case((tensor(B, T, C), *fc, *fcproj), {})


def classifier(B, T, C, V, Vp):
    targets, dlosses = Spec("targets", (B, T), V), Spec("constant", (B, T))
    return Case((tensor(B, T, C), tensor(Vp, C), targets, dlosses), dict(V=V), dout=3)


class Use(NamedTuple):
    """A call of an op in a training step."""

    op: str
    case: Case
    forward: int  # how often in a step
    backward: int


def uses(model: ModelConfig, B: int, T: int) -> dict[str, Use]:
    """What the step of GPT-2 calls, by a name that says which of several it is."""
    L, C = model.L, model.C
    return {
        "encoder": Use("encoder", encoder(B, T, C, model.Vp, model.maxT), 1, 1),
        # forward, the first has nothing to add; backward, to the last nothing is added
        "layernorm": Use("layernorm", layernorm(B, T, C), 1, 1),
        "residual_layernorm": Use("residual_layernorm", residual_layernorm(B, T, C), 2 * L, 2 * L),
        "matmul qkv": Use("matmul", matmul(B, T, C, 3 * C), L, L),
        "matmul attproj": Use("matmul", matmul(B, T, C, C), L, L),
        "attention": Use("attention", attention(B, T, model.NH, model.HS), L, L),
        "mlp": Use("mlp", mlp(B, T, C), L, L),
        "classifier": Use("classifier", classifier(B, T, C, model.V, model.Vp), 1, 1),
    }


def shapes(case: Case, dtype) -> list[jax.ShapeDtypeStruct]:
    """Shape and dtype of the inputs that `make_inputs` makes."""
    wide = accumulation_dtype(dtype)
    dtypes = dict(tensor=dtype, vector=wide, constant=wide)
    return [jax.ShapeDtypeStruct(s.shape, dtypes.get(s.kind, jnp.int32)) for s in case.inputs]


# op -> cases. Odd on purpose: T = 1, C not a multiple of 8, B * T on both sides of a multiple of
# 16, 32 or 64, tiles not filled and more than one tile of 256 x 768, a padded vocabulary.
CASES = {
    "encoder": (
        encoder(2, 5, 12, 40, 8),
        encoder(1, 1, 7, 11, 1),
        encoder(4, 64, 32, 300, 64),
        encoder(3, 63, 48, 5, 100),  # each token many times
        encoder(1, 65, 48, 50304, 65),
    ),
    "layernorm": (
        layernorm(2, 5, 12),
        layernorm(1, 1, 7),
        layernorm(3, 33, 100),
        layernorm(1, 65, 48),
        layernorm(3, 63, 768),
    ),
    "residual_layernorm": (
        residual_layernorm(2, 5, 12),
        residual_layernorm(1, 1, 7),
        residual_layernorm(3, 33, 100),
        residual_layernorm(1, 65, 48),
        residual_layernorm(3, 63, 768),
    ),
    "matmul": (
        matmul(2, 5, 12, 36),
        matmul(1, 1, 7, 3),
        matmul(2, 33, 48, 20),
        matmul(1, 1, 48, 144),
        matmul(1, 63, 48, 48),
        matmul(3, 65, 48, 144),
        matmul(2, 150, 64, 800),
        matmul(1, 300, 800, 48),
    ),
    "attention": (
        attention(2, 5, 3, 4),
        attention(1, 1, 1, 7),
        attention(2, 64, 2, 16),
        attention(1, 65, 3, 16),
        attention(1, 200, 2, 24),
        attention(3, 1, 3, 16),
        attention(2, 63, 3, 16),
        attention(2, 130, 2, 64),
        attention(1, 1000, 1, 16),
    ),
    "mlp": (
        mlp(2, 5, 12),
        mlp(1, 1, 7),
        mlp(1, 1, 48),
        mlp(1, 63, 48),
        mlp(3, 65, 48),
        mlp(2, 150, 64),
        mlp(1, 300, 200),
    ),
    "classifier": (
        classifier(2, 5, 12, 60, 64),
        classifier(1, 1, 7, 11, 11),
        classifier(2, 6, 16, 50257, 50304),
        classifier(1, 63, 48, 65, 128),
        classifier(3, 65, 48, 1000, 1024),
        classifier(1, 65, 8, 50257, 50304),
        classifier(2, 150, 64, 800, 800),
        classifier(1, 40, 800, 90, 96),
    ),
}
