"""GPT-2 (Radford et al. 2019) as llm.c has it: forward, and backward as forward reversed.

Only maths: no mesh, no optimizer, no choice of implementation (that is `ops`, an ops.Ops).
Parameters keep llm.c's names, layouts and order; those of the blocks have a leading L.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from llmc_jax.config import ModelConfig
from llmc_jax.ops import Ops, attention, classifier, layernorm

EPS = 1e-5  # of every layernorm


class Block(NamedTuple):
    """Parameters of all blocks (or, without the leading L, of one)."""

    ln1w: Array  # (L, C)
    ln1b: Array  # (L, C)
    qkvw: Array  # (L, 3C, C)
    qkvb: Array  # (L, 3C)
    attprojw: Array  # (L, C, C)
    attprojb: Array  # (L, C)
    ln2w: Array  # (L, C)
    ln2b: Array  # (L, C)
    fcw: Array  # (L, 4C, C)
    fcb: Array  # (L, 4C)
    fcprojw: Array  # (L, C, 4C)
    fcprojb: Array  # (L, C)


class Params(NamedTuple):
    """All parameters; the leaves are in the order of llm.c's 16 tensors."""

    wte: Array  # (Vp, C), token embedding and, transposed, the head
    wpe: Array  # (maxT, C)
    block: Block
    lnfw: Array  # (C,)
    lnfb: Array  # (C,)


def shapes(cfg: ModelConfig) -> Params:
    """Shape and dtype (float32) of every parameter, as jax.ShapeDtypeStruct."""
    L, C = cfg.L, cfg.C

    def f32(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    block = Block(
        ln1w=f32(L, C),
        ln1b=f32(L, C),
        qkvw=f32(L, 3 * C, C),
        qkvb=f32(L, 3 * C),
        attprojw=f32(L, C, C),
        attprojb=f32(L, C),
        ln2w=f32(L, C),
        ln2b=f32(L, C),
        fcw=f32(L, 4 * C, C),
        fcb=f32(L, 4 * C),
        fcprojw=f32(L, C, 4 * C),
        fcprojb=f32(L, C),
    )
    return Params(f32(cfg.Vp, C), f32(cfg.maxT, C), block, f32(C), f32(C))


# The tensors that enter matrix products and lookups: the ones that weight decay applies to and
# that are used in the dtype of the activations. The others are vectors and stay in float32.
MATRICES = Params(
    wte=True,
    wpe=True,
    block=Block(
        **dict.fromkeys(Block._fields, False)
        | dict(qkvw=True, attprojw=True, fcw=True, fcprojw=True)
    ),
    lnfw=False,
    lnfb=False,
)


class BlockActs(NamedTuple):
    """What forward keeps of the blocks for backward: the memory table, with a leading L.

    None where --recompute drops a tensor.
    """

    residual1: Array  # (L, B, T, C), the block's input
    ln1: Array | None  # (L, B, T, C)
    ln1_stats: layernorm.Saved  # 2 x (L, B, T) float32
    qkv: Array  # (L, B, T, 3C)
    att: attention.Saved  # atty (L, B, T, C) and lse (L, B, NH, T) float32
    residual2: Array  # (L, B, T, C)
    ln2: Array | None  # (L, B, T, C)
    ln2_stats: layernorm.Saved  # 2 x (L, B, T) float32
    fch: Array  # (L, B, T, 4C)
    fch_gelu: Array | None  # (L, B, T, 4C)


class Acts(NamedTuple):
    """What forward keeps for backward."""

    block: BlockActs
    residual3: Array  # (B, T, C), the last block's output
    lnf: Array  # (B, T, C)
    lnf_stats: layernorm.Saved  # 2 x (B, T) float32
    classifier: classifier.Saved


# --recompute: the tensors backward computes again.
DROP = {0: (), 1: ("fch_gelu",), 2: ("fch_gelu", "ln1", "ln2")}


def block_forward(ops: Ops, p: Block, residual1, *, NH):
    """One block; residual1 and the result are (B,T,C). Returns (residual3, BlockActs)."""
    ln1, ln1_stats = ops.layernorm.forward(residual1, p.ln1w, p.ln1b, eps=EPS)
    qkv, _ = ops.matmul.forward(ln1, p.qkvw, p.qkvb)
    atty, att = ops.attention.forward(qkv, NH=NH)
    attproj, _ = ops.matmul.forward(atty, p.attprojw, p.attprojb)
    residual2 = residual1 + attproj
    ln2, ln2_stats = ops.layernorm.forward(residual2, p.ln2w, p.ln2b, eps=EPS)
    fch, _ = ops.matmul.forward(ln2, p.fcw, p.fcb)
    fch_gelu, _ = ops.gelu.forward(fch)
    fcproj, _ = ops.matmul.forward(fch_gelu, p.fcprojw, p.fcprojb)
    residual3 = residual2 + fcproj
    return residual3, BlockActs(
        residual1, ln1, ln1_stats, qkv, att, residual2, ln2, ln2_stats, fch, fch_gelu
    )


def block_backward(ops: Ops, p: Block, a: BlockActs, dresidual, *, NH):
    """Forward reversed; dresidual (B,T,C). Returns (dresidual of the input, Block of gradients).

    A residual connection passes dresidual on unchanged and adds what comes through its branch.
    """
    dfch_gelu, dfcprojw, dfcprojb = ops.matmul.backward(
        (), dresidual, a.fch_gelu, p.fcprojw, p.fcprojb
    )
    (dfch,) = ops.gelu.backward((), dfch_gelu, a.fch)
    dln2, dfcw, dfcb = ops.matmul.backward((), dfch, a.ln2, p.fcw, p.fcb)
    dbranch, dln2w, dln2b = ops.layernorm.backward(
        a.ln2_stats, dln2, a.residual2, p.ln2w, p.ln2b, eps=EPS
    )
    dresidual = dresidual + dbranch
    datty, dattprojw, dattprojb = ops.matmul.backward(
        (), dresidual, a.att.out, p.attprojw, p.attprojb
    )
    (dqkv,) = ops.attention.backward(a.att, datty, a.qkv, NH=NH)
    dln1, dqkvw, dqkvb = ops.matmul.backward((), dqkv, a.ln1, p.qkvw, p.qkvb)
    dbranch, dln1w, dln1b = ops.layernorm.backward(
        a.ln1_stats, dln1, a.residual1, p.ln1w, p.ln1b, eps=EPS
    )
    return dresidual + dbranch, Block(
        dln1w, dln1b, dqkvw, dqkvb, dattprojw, dattprojb,
        dln2w, dln2b, dfcw, dfcb, dfcprojw, dfcprojb,
    )  # fmt: skip


def restore(ops: Ops, p: Block, a: BlockActs) -> BlockActs:
    """The activations of one block with those that were dropped computed again."""
    if a.ln1 is None:
        a = a._replace(ln1=ops.layernorm.forward(a.residual1, p.ln1w, p.ln1b, eps=EPS)[0])
    if a.ln2 is None:
        a = a._replace(ln2=ops.layernorm.forward(a.residual2, p.ln2w, p.ln2b, eps=EPS)[0])
    if a.fch_gelu is None:
        a = a._replace(fch_gelu=ops.gelu.forward(a.fch)[0])
    return a


def trunk(ops: Ops, params: Params, inputs, *, cfg: ModelConfig, recompute: int = 0):
    """From tokens to the last block's output; inputs (B,T) int32.

    Returns (residual3 (B,T,C), BlockActs); unused activations cost nothing once compiled.
    """

    def body(residual, p):
        residual, acts = block_forward(ops, p, residual, NH=cfg.NH)
        return residual, acts._replace(**dict.fromkeys(DROP[recompute]))

    encoded, _ = ops.encoder.forward(inputs, params.wte, params.wpe)
    return lax.scan(body, encoded, params.block)


def forward(
    ops: Ops, params: Params, inputs, targets, dlosses, *, cfg: ModelConfig, recompute: int = 0
):
    """Losses of the targets, and what backward needs.

    inputs, targets (B,T) int32, a target below 0 is ignored; dlosses (B,T) float32, gradient of
    the total loss with respect to each loss (ops/classifier.py says why forward takes it).
    Returns (losses (B,T) float32, Acts). Reference: llm.c gpt2_forward.
    """
    residual3, block_acts = trunk(ops, params, inputs, cfg=cfg, recompute=recompute)
    lnf, lnf_stats = ops.layernorm.forward(residual3, params.lnfw, params.lnfb, eps=EPS)
    losses, saved = ops.classifier.forward(lnf, params.wte, targets, dlosses, V=cfg.V)
    return losses, Acts(block_acts, residual3, lnf, lnf_stats, saved)


def backward(
    ops: Ops, params: Params, acts: Acts, dlosses, inputs, targets, *, cfg: ModelConfig
) -> Params:
    """Gradient of sum(losses * dlosses) for every parameter, in float32: forward reversed.

    Arrays as in `forward`. Reference: llm.c gpt2_backward_and_reduce.
    """

    def body(dresidual, layer):
        p, a = layer
        return block_backward(ops, p, restore(ops, p, a), dresidual, NH=cfg.NH)

    dlnf, dwte_head = ops.classifier.backward(
        acts.classifier, dlosses, acts.lnf, params.wte, targets, dlosses, V=cfg.V
    )
    dresidual, dlnfw, dlnfb = ops.layernorm.backward(
        acts.lnf_stats, dlnf, acts.residual3, params.lnfw, params.lnfb, eps=EPS
    )
    dencoded, dblock = lax.scan(body, dresidual, (params.block, acts.block), reverse=True)
    dwte_encoder, dwpe = ops.encoder.backward((), dencoded, inputs, params.wte, params.wpe)
    return Params(dwte_head + dwte_encoder, dwpe, dblock, dlnfw, dlnfb)


def logits(ops: Ops, params: Params, inputs, *, cfg: ModelConfig):
    """Logits of every position; inputs (B,T) int32, result (B,T,V) float32."""
    residual3, _ = trunk(ops, params, inputs, cfg=cfg)
    return _head(ops, params, residual3, cfg).reshape(*inputs.shape, cfg.V)


def logits_at(ops: Ops, params: Params, inputs, position, *, cfg: ModelConfig):
    """Logits after inputs[:, position]; inputs (B,T) int32, result (B,V) float32."""
    residual3, _ = trunk(ops, params, inputs, cfg=cfg)
    return _head(ops, params, lax.dynamic_slice_in_dim(residual3, position, 1, axis=1), cfg)


def _head(ops, params, residual3, cfg):
    """Logits (B*T,V) of residual3 (B,T,C)."""
    lnf, _ = ops.layernorm.forward(residual3, params.lnfw, params.lnfb, eps=EPS)
    return classifier.logits(lnf, params.wte)[:, : cfg.V]


def cast(params: Params, dtype) -> Params:
    """The parameters as the ops use them: matrices in `dtype`, vectors as they are."""
    return jax.tree.map(lambda p, matrix: p.astype(dtype) if matrix else p, params, MATRICES)
