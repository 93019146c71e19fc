"""The MLP of a block: linear layer, GELU, linear layer (llm.c's fch, fch_gelu, fcproj).

One op for the three, so that an implementation may apply the GELU while a tile of the product is
at hand, forward and backward.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from llmc_jax.ops import gelu, matmul
from llmc_jax.ops.factors import Factors
from llmc_jax.ops.op import Cost, Op, after, run_kernel, size


class Saved(NamedTuple):
    """What backward needs; it computes again what is None.

    An implementation may leave fch_gelu None always, and the model takes out what --recompute says.
    """

    fch: Array | None  # (B, T, 4C), before the GELU
    fch_gelu: Array | None  # (B, T, 4C)


def forward(inp, fcw, fcb, fcprojw, fcprojb, *, keep=True):
    """out = gelu(inp @ fcw.T + fcb) @ fcprojw.T + fcprojb.

    inp, out (B,T,C), fcw (4C,C), fcb (4C,), fcprojw (C,4C), fcprojb (C,). keep: whether what Saved
    has will be wanted; a kernel need not write it then. (Here XLA sees for itself.)
    """
    fch, _ = matmul.forward(inp, fcw, fcb)
    fch_gelu, _ = gelu.forward(fch)
    out, _ = matmul.forward(fch_gelu, fcprojw, fcprojb)
    return out, Saved(fch, fch_gelu)


def backward(saved, dout, inp, fcw, fcb, fcprojw, fcprojb):
    """Forward reversed: (dinp, dfcw, dfcb, dfcprojw, dfcprojb), shapes as in forward.

    dinp, dfcw, dfcprojw in the activations' dtype, dfcb, dfcprojb in the accumulation dtype.
    """
    fch, fch_gelu = saved
    if fch is None:
        fch, _ = matmul.forward(inp, fcw, after(fcb, dout))
    else:
        fch = after(fch, dout)  # or XLA would keep the GELU's tanh from forward
    if fch_gelu is None:
        fch_gelu, _ = gelu.forward(fch)
    dfch_gelu, dfcprojw, dfcprojb = matmul.backward((), dout, fch_gelu, fcprojw, fcprojb)
    (dfch,) = gelu.backward((), dfch_gelu, fch)
    dinp, dfcw, dfcb = matmul.backward((), dfch, inp, fcw, fcb)
    return dinp, dfcw, dfcb, dfcprojw, dfcprojb


def native_forward(inp, fcw, fcb, fcprojw, fcprojb, *, keep=True):
    """`forward` as a kernel. It needs fch_gelu on the way; backward gets it for nothing."""
    out, saved = jax.eval_shape(forward, inp, fcw, fcb, fcprojw, fcprojb)
    results = (out, saved if keep else saved._replace(fch=matmul.left_out(saved.fch)))
    out, saved = run_kernel("llmc_mlp_forward", results, inp, fcw, fcb, fcprojw, fcprojb)
    return out, Saved(saved.fch if keep else None, None)


def native_backward(saved, dout, inp, fcw, fcb, fcprojw, fcprojb, *, in_factors=False):
    """`backward` as a kernel, with room for fch_gelu and, in the place of fch, dfch.

    Where fch was not kept, it makes that again, a tile at a time. in_factors: it leaves dfcw and
    dfcprojw out.
    """
    inputs = (inp, fcw, fcb, fcprojw, fcprojb)
    hidden = jax.eval_shape(matmul.forward, inp, fcw, fcb)[0]
    dinp, dfcw, dfcb, dfcprojw, dfcprojb = jax.eval_shape(backward, saved, dout, *inputs)
    if in_factors:
        dfcw, dfcprojw = matmul.left_out(dfcw), matmul.left_out(dfcprojw)
    rooms = (hidden, hidden)  # fch_gelu, dfch
    results = (dinp, dfcw, dfcb, dfcprojw, dfcprojb, *rooms)
    if saved.fch is None:
        fch, aliases = jnp.zeros(matmul.left_out(hidden).shape, hidden.dtype), None
    else:
        fch, aliases = saved.fch, {0: len(results) - 1}
    dinp, dfcw, dfcb, dfcprojw, dfcprojb, fch_gelu, dfch = run_kernel(
        "llmc_mlp_backward", results, fch, dout, *inputs, aliases=aliases
    )
    if in_factors:
        dfcw, dfcprojw = Factors(dfch, inp), Factors(dout, fch_gelu)
    return dinp, dfcw, dfcb, dfcprojw, dfcprojb


def cuda_forward(inp, fcw, fcb, fcprojw, fcprojb, *, keep=True):
    """`forward` with the GELU in the epilogue of the product before it."""
    fch, _ = matmul.rounded_forward(inp, fcw, fcb)
    fch_gelu = gelu.in_epilogue(fch)
    out, _ = matmul.rounded_forward(fch_gelu, fcprojw, fcprojb)
    return out, Saved(fch, fch_gelu)


def cuda_backward(saved, dout, inp, fcw, fcb, fcprojw, fcprojb):
    """`backward` with a kernel for the GELU, which makes dfcb and, where it is gone, fch_gelu."""
    input_gradient = partial(matmul.input_gradient, dot=matmul.rounded_dot)
    weight_gradient = partial(matmul.weight_gradient, dot=matmul.rounded_dot)
    fch, fch_gelu = saved
    if fch is None:
        fch, _ = matmul.rounded_forward(inp, fcw, after(fcb, dout))
    dfch_gelu = input_gradient(dout, fcprojw)
    dfch, dfcb, again = gelu.cuda_backward(dfch_gelu, fch, again=fch_gelu is None)
    fch_gelu = again if fch_gelu is None else fch_gelu
    dfcprojw, dfcprojb = weight_gradient(dout, fch_gelu), matmul.bias_gradient(dout)
    return input_gradient(dfch, fcw), weight_gradient(dfch, inp), dfcb, dfcprojw, dfcprojb


def cost(inp, fcw, fcb, fcprojw, fcprojb) -> tuple[Cost, Cost]:
    """Two products forward, four backward; nothing of the hidden layer need leave a kernel."""
    N, weights, itemsize = math.prod(inp.shape[:-1]), (fcw, fcprojw), jnp.dtype(inp.dtype).itemsize
    elements = sum(math.prod(w.shape) for w in weights)
    forward = Cost(2 * N * elements, size(inp, inp, *weights))
    return forward, Cost(2 * forward.flop, size(inp, inp, inp, *weights) + itemsize * elements)


JNP = Op(forward, backward)
IMPLEMENTATIONS = {
    "jnp": JNP,
    "ffi": Op(
        native_forward,
        native_backward,
        rounds_weights=True,
        backward_in_factors=partial(native_backward, in_factors=True),
    ),
    "cuda": Op(cuda_forward, cuda_backward),
}
