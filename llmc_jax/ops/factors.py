"""Gradients of weights that are left in their factors.

The gradient of a linear layer's weight is a product over the rows of the batch, dout.T @ inp. With
few rows its factors are less memory than itself, and a step wants it for two things only. Its norm
follows from the factors, as the sum of the products of the elements of dout @ dout.T and
inp @ inp.T (Goodfellow 2015, arXiv:1510.01799, has it for one row); and for AdamW it can be made
weight by weight, each in the memory of the one before.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from llmc_jax.ops.op import accumulation_dtype


class Factors(NamedTuple):
    """The gradient of a weight (OC,C) as dout.T @ inp, a leaf of a tree of gradients."""

    dout: Array  # (B, T, OC)
    inp: Array  # (B, T, C)


def multiplied(grads):
    """The tree with every gradient an array: what was in factors, of the accumulation dtype."""
    return jax.tree.map(_product, grads, is_leaf=_is_factors)


def arrays_of_each(grads) -> tuple[int, ...]:
    """For each gradient in the order of the tree, how many arrays it is: 1, or 2 factors."""
    return tuple(2 if _is_factors(g) else 1 for g in jax.tree.leaves(grads, is_leaf=_is_factors))


def _is_factors(node) -> bool:
    return isinstance(node, Factors)


def _product(grad):
    if not _is_factors(grad):
        return grad
    dtype = accumulation_dtype(grad.dout.dtype)
    return jnp.einsum("bto,btc->oc", *grad, preferred_element_type=dtype)
