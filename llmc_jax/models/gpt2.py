"""GPT-2 (Radford et al. 2019) as llm.c has it: forward, and backward as forward reversed.

Only maths: no mesh, no optimizer, no choice of implementation (that is `ops`, an ops.Ops).
Parameters keep llm.c's names, layouts and order, but each layer has arrays of its own: a slice of
a stack in front of a kernel call is a copy, stacking the results is another, and on a CPU these
copies took 7 % of the step. So the layers are a Python loop and not a lax.scan.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from llmc_jax.config import ModelConfig
from llmc_jax.ops import Ops, attention, classifier, layernorm, mlp
from llmc_jax.ops.op import after

EPS = 1e-5  # of every layernorm
DROPS_FCH = 3  # from this --recompute on fch is not kept, the largest of activations


class Block(NamedTuple):
    """Parameters of one layer."""

    ln1w: Array  # (C,)
    ln1b: Array  # (C,)
    qkvw: Array  # (3C, C)
    qkvb: Array  # (3C,)
    attprojw: Array  # (C, C)
    attprojb: Array  # (C,)
    ln2w: Array  # (C,)
    ln2b: Array  # (C,)
    fcw: Array  # (4C, C)
    fcb: Array  # (4C,)
    fcprojw: Array  # (C, 4C)
    fcprojb: Array  # (C,)


class Params(NamedTuple):
    """All parameters; stacked over the layers they are llm.c's 16 tensors, in its order."""

    wte: Array  # (Vp, C), token embedding and, transposed, the head
    wpe: Array  # (maxT, C)
    block: tuple[Block, ...]  # L of them
    lnfw: Array  # (C,)
    lnfb: Array  # (C,)


def shapes(cfg: ModelConfig) -> Params:
    """Shape and dtype (float32) of every parameter, as jax.ShapeDtypeStruct."""
    C = cfg.C

    def f32(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    block = Block(
        ln1w=f32(C),
        ln1b=f32(C),
        qkvw=f32(3 * C, C),
        qkvb=f32(3 * C),
        attprojw=f32(C, C),
        attprojb=f32(C),
        ln2w=f32(C),
        ln2b=f32(C),
        fcw=f32(4 * C, C),
        fcb=f32(4 * C),
        fcprojw=f32(C, 4 * C),
        fcprojb=f32(C),
    )
    return Params(f32(cfg.Vp, C), f32(cfg.maxT, C), (block,) * cfg.L, f32(C), f32(C))


def gradient_shapes(cfg: ModelConfig, dtype) -> Params:
    """Shape and dtype of every gradient that `backward` returns, for activations of `dtype`."""

    def gradient(p):
        return jax.ShapeDtypeStruct(p.shape, dtype) if is_matrix(p) else p

    params = shapes(cfg)
    return params._replace(block=jax.tree.map(gradient, params.block))


def is_matrix(param) -> bool:
    """Whether a parameter enters matrix products and lookups.

    Those decay and are used in the dtype of the activations; the others are vectors, do not
    decay and stay in float32.
    """
    return param.ndim == 2


def flop_per_token(cfg: ModelConfig, T: int) -> dict[str, float]:
    """Floating-point operations of a token in a step, forward and backward, by two formulas.

    "llm.c": 6 for each parameter, all counted, and causal attention as half of the square
    (gpt2_estimate_mfu). "PaLM": the whole square, without the position embedding (Chowdhery et
    al. 2022, arXiv:2204.02311, appendix B; nanoGPT). What is computed again is in neither.
    """
    attention = cfg.L * cfg.C * T
    return {
        "llm.c": 6 * cfg.num_parameters + 6 * attention,
        "PaLM": 6 * (cfg.num_parameters - cfg.maxT * cfg.C) + 12 * attention,
    }


class BlockActs(NamedTuple):
    """What forward keeps of a layer for backward: the memory table.

    None where --recompute drops a tensor, or an op does not keep it.
    """

    residual1: Array  # (B, T, C), the layer's input
    ln1: Array | None  # (B, T, C)
    ln1_stats: layernorm.Saved | None  # 2 x (B, T) float32
    qkv: Array | None  # (B, T, 3C)
    att: attention.Saved | None  # atty (B, T, C) and lse (B, NH, T) float32
    residual2: Array | None  # (B, T, C)
    ln2: Array | None  # (B, T, C)
    ln2_stats: layernorm.Saved | None  # 2 x (B, T) float32
    mlp: mlp.Saved  # fch and fch_gelu, (B, T, 4C) or None


class Acts(NamedTuple):
    """What forward keeps for backward."""

    block: tuple[BlockActs, ...]  # L of them
    residual3: Array  # (B, T, C), the last layer's output
    lnf: Array  # (B, T, C)
    lnf_stats: layernorm.Saved  # 2 x (B, T) float32
    classifier: classifier.Saved | None  # None where no gradient is wanted


class Stream(NamedTuple):
    """The residual stream, residual + branch: the layernorm that comes next adds them, because it
    reads both anyway."""

    residual: Array  # (B, T, C)
    branch: Array | None  # (B, T, C); None in front of the first layer: nothing to add

    @property
    def newest(self) -> Array:
        """What was computed last."""
        return self.residual if self.branch is None else self.branch


def layernorm_of(ops: Ops, stream: Stream, weight, bias):
    """(the sum of `stream`, its layernorm, both (B,T,C), and what backward needs)."""
    residual, branch = stream
    if branch is None:
        return residual, *ops.layernorm.forward(residual, weight, bias, eps=EPS)
    added, saved = ops.residual_layernorm.forward(residual, branch, weight, bias, eps=EPS)
    return *added, saved


def block_forward(
    ops: Ops, p: Block, stream: Stream, *, NH, att: attention.Saved | None = None, keep_fch=True
):
    """One layer. Returns (the Stream behind it, BlockActs).

    att: what attention kept before. keep_fch: whether backward will find fch in BlockActs.
    """
    residual1, ln1, ln1_stats = layernorm_of(ops, stream, p.ln1w, p.ln1b)
    qkv, _ = ops.matmul.forward(ln1, p.qkvw, p.qkvb)
    atty, att = (att.out, att) if att else ops.attention.forward(qkv, NH=NH)
    attproj, _ = ops.matmul.forward(atty, p.attprojw, p.attprojb)
    residual2, ln2, ln2_stats = layernorm_of(ops, Stream(residual1, attproj), p.ln2w, p.ln2b)
    fcproj, hidden = ops.mlp.forward(ln2, p.fcw, p.fcb, p.fcprojw, p.fcprojb, keep=keep_fch)
    acts = BlockActs(residual1, ln1, ln1_stats, qkv, att, residual2, ln2, ln2_stats, hidden)
    return Stream(residual2, fcproj), acts


def block_backward(ops: Ops, p: Block, a: BlockActs, dresidual, *, NH):
    """Forward reversed; dresidual (B,T,C). Returns (dresidual of the input, Block of gradients).

    A residual connection passes dresidual on unchanged and adds what comes through its branch,
    which ends in a layernorm: residual_layernorm's backward is that sum, for both layernorms.
    """
    dln2, dfcw, dfcb, dfcprojw, dfcprojb = ops.mlp.backward(
        a.mlp, dresidual, a.ln2, p.fcw, p.fcb, p.fcprojw, p.fcprojb
    )
    dresidual, dln2w, dln2b = ops.residual_layernorm.backward(
        a.ln2_stats, (dresidual, dln2), a.residual2, p.ln2w, p.ln2b, eps=EPS
    )
    datty, dattprojw, dattprojb = ops.matmul.backward(
        (), dresidual, a.att.out, p.attprojw, p.attprojb
    )
    (dqkv,) = ops.attention.backward(a.att, datty, a.qkv, NH=NH)
    dln1, dqkvw, dqkvb = ops.matmul.backward((), dqkv, a.ln1, p.qkvw, p.qkvb)
    dresidual, dln1w, dln1b = ops.residual_layernorm.backward(
        a.ln1_stats, (dresidual, dln1), a.residual1, p.ln1w, p.ln1b, eps=EPS
    )
    return dresidual, Block(
        dln1w, dln1b, dqkvw, dqkvb, dattprojw, dattprojb,
        dln2w, dln2b, dfcw, dfcb, dfcprojw, dfcprojb,
    )  # fmt: skip


def drop(a: BlockActs, recompute: int) -> BlockActs:
    """`a` without what backward is to compute again at the level --recompute."""
    if recompute >= 1:
        a = a._replace(mlp=a.mlp._replace(fch_gelu=None))
    if recompute >= 2:
        a = a._replace(ln1=None, ln2=None)
    if recompute >= DROPS_FCH:
        a = a._replace(mlp=a.mlp._replace(fch=None))
    if recompute >= 4:
        a = a._replace(ln1_stats=None, qkv=None, residual2=None, ln2_stats=None)
        if not isinstance(a.att, attention.Saved):  # JAX's own kernels keep q, k and v in it
            a = a._replace(att=None)
    return a


def restore(ops: Ops, p: Block, a: BlockActs, dresidual, *, NH) -> BlockActs:
    """`a` with what was dropped computed again, but for what ops.mlp does so itself.

    dresidual: what must be there before that is done.
    """

    def layernorm_again(inp, weight, bias):
        return ops.layernorm.forward(inp, after(weight, dresidual), bias, eps=EPS)[0]

    if a.qkv is None:  # nothing is there but residual1 and, where drop leaves it, att
        # in front of all products, of which XLA would else keep forward's
        again = p._replace(ln1w=after(p.ln1w, dresidual), attprojw=after(p.attprojw, dresidual))
        _, whole = block_forward(ops, again, Stream(a.residual1, None), NH=NH, att=a.att)
        return whole._replace(mlp=a.mlp)
    if a.ln1 is None:
        a = a._replace(ln1=layernorm_again(a.residual1, p.ln1w, p.ln1b))
    if a.ln2 is None:
        a = a._replace(ln2=layernorm_again(a.residual2, p.ln2w, p.ln2b))
    return a


def at_hand(p, now):
    """The parameters of a layer, where they need not be fetched from anywhere."""
    return p


def trunk(
    ops: Ops,
    params: Params,
    inputs,
    *,
    cfg: ModelConfig,
    recompute: int = 0,
    dtype=None,
    fetch: Callable = at_hand,
):
    """From tokens to behind the last layer; inputs (B,T) int32, dtype and fetch as in `forward`.

    Returns (the Stream there, a BlockActs a layer); unused ones cost nothing once compiled.
    """
    encoded, _ = ops.encoder.forward(inputs, params.wte, params.wpe, dtype=dtype)
    stream, keep_fch = Stream(encoded, None), recompute < DROPS_FCH
    acts = []
    for layer, p in enumerate(params.block):
        with jax.named_scope(f"block{layer}"):
            p = fetch(p, stream.newest)
            stream, a = block_forward(ops, p, stream, NH=cfg.NH, keep_fch=keep_fch)
        acts.append(drop(a, recompute))
    return stream, tuple(acts)


def forward(
    ops: Ops,
    params: Params,
    inputs,
    targets,
    dlosses,
    *,
    cfg: ModelConfig,
    recompute: int = 0,
    dtype=None,
    fetch: Callable = at_hand,
):
    """Losses of the targets, and what backward needs.

    inputs, targets (B,T) int32, a target below 0 is ignored; dlosses (B,T) float32, gradient of
    the total loss with respect to each loss (ops/classifier.py says why forward takes it), None
    where there will be no backward. dtype: of the activations; None: that of params.wte.
    fetch(p, now): the Block that an element p of params.block stands for, asked for just before its
    layer, when the array `now` has been computed.
    Returns (losses (B,T) float32, Acts). Reference: llm.c gpt2_forward.
    """
    if dlosses is None:
        recompute = DROPS_FCH  # there will be no backward to read it
    options = dict(recompute=recompute, dtype=dtype, fetch=fetch)
    stream, block_acts = trunk(ops, params, inputs, cfg=cfg, **options)
    residual3, lnf, lnf_stats = layernorm_of(ops, stream, params.lnfw, params.lnfb)
    losses, saved = ops.classifier.forward(lnf, params.wte, targets, dlosses, V=cfg.V)
    return losses, Acts(block_acts, residual3, lnf, lnf_stats, saved)


def backward(
    ops: Ops,
    params: Params,
    acts: Acts,
    dlosses,
    inputs,
    targets,
    *,
    cfg: ModelConfig,
    fetch: Callable = at_hand,
) -> Params:
    """Gradient of sum(losses * dlosses) for every parameter: forward reversed.

    In float32, but those of the layers' matrices in the activations' dtype, or in their factors
    where the ops leave them there. Arrays and fetch as in `forward`.
    Reference: llm.c gpt2_backward_and_reduce.
    """
    of_head = ops.classifier.backward(
        acts.classifier, dlosses, acts.lnf, params.wte, targets, dlosses, V=cfg.V
    )
    # At once, here and for each layer: or XLA:GPU leaves gradients of weights, and with them what
    # they are made of, for the end.
    dlnf, dwte_head = lax.optimization_barrier(of_head)
    dresidual, dlnfw, dlnfb = ops.layernorm.backward(
        acts.lnf_stats, dlnf, acts.residual3, params.lnfw, params.lnfb, eps=EPS
    )
    dblock = []
    for layer in reversed(range(cfg.L)):
        with jax.named_scope(f"block{layer}"):
            p = fetch(params.block[layer], dresidual)
            a = restore(ops, p, acts.block[layer], dresidual, NH=cfg.NH)
            grads = block_backward(ops, p, a, dresidual, NH=cfg.NH)
            dresidual, dp = lax.optimization_barrier(grads)
        dblock.insert(0, dp)
    dwte, dwpe = ops.encoder.backward((), dresidual, inputs, dwte_head, params.wpe)
    return Params(dwte, dwpe, tuple(dblock), dlnfw, dlnfb)


def logits(ops: Ops, params: Params, inputs, *, cfg: ModelConfig):
    """Logits of every position; inputs (B,T) int32, result (B,T,V) float32."""
    stream, _ = trunk(ops, params, inputs, cfg=cfg, recompute=DROPS_FCH)
    return head(ops, params, stream, cfg).reshape(*inputs.shape, cfg.V)


def head(ops: Ops, params: Params, stream: Stream, cfg: ModelConfig):
    """Logits (B*T,V) float32 of the stream behind the last layer."""
    _, lnf, _ = layernorm_of(ops, stream, params.lnfw, params.lnfb)
    return ops.logits(lnf, params.wte)[:, : cfg.V]


def cast(params: Params, dtype, like: Params | None = None) -> Params:
    """The parameters as the ops use them: matrices in `dtype`, vectors as they are.

    like: which are which by their shapes, where params have lost them.
    """
    return jax.tree.map(
        lambda p, shape: p.astype(dtype) if is_matrix(shape) else p, params, like or params
    )
