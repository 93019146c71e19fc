"""GPT-2's initial parameters, number for number those of llm.c and of PyTorch.

Both draw normals from a 32-bit Mersenne Twister (mt19937); NumPy's legacy generator yields the
same stream of integers, so no PyTorch is needed. Reference: llm.c rand.h, gpt2_init.
"""

import jax
import numpy as np

from llmc_jax.config import ModelConfig
from llmc_jax.models import gpt2
from llmc_jax.models.gpt2 import Params

STD = 0.02
BLOCK = 16  # PyTorch makes normals 16 at a time: 8 radii, 8 angles
CHUNK = 1 << 16  # drawn at once, so that what is in between stays in the processor's cache


def initialize(cfg: ModelConfig, seed: int) -> Params:
    """Parameters drawn as GPT-2 does, NumPy float32 arrays in llm.c's layout.

    Weights are N(0, 0.02), those that feed the residual stream N(0, 0.02 / sqrt(2 L)); biases
    and the padded rows of wte are 0, layernorm weights 1. Drawn in llm.c's order: wte, wpe, then
    layer by layer qkvw, attprojw, fcw, fcprojw.
    """
    rng = np.random.RandomState(seed)
    residual_std = STD / np.sqrt(2 * cfg.L)
    params = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), gpt2.shapes(cfg))
    params.lnfw.fill(1)
    draw(rng, params.wte[: cfg.V], STD)
    draw(rng, params.wpe, STD)
    for block in params.block:
        block.ln1w.fill(1)
        block.ln2w.fill(1)
        draw(rng, block.qkvw, STD)
        draw(rng, block.attprojw, residual_std)
        draw(rng, block.fcw, STD)
        draw(rng, block.fcprojw, residual_std)
    return params


def draw(rng: np.random.RandomState, out: np.ndarray, std: float) -> None:
    """Fill `out` (float32) with N(0, std) as torch.Tensor.normal_ does."""
    assert out.size % BLOCK == 0, "PyTorch draws a rest of less than 16 in another way"
    flat = out.reshape(-1)
    for start in range(0, out.size, CHUNK):
        part = flat[start : start + CHUNK].reshape(-1, 2, BLOCK // 2)
        uniforms = uniform(rng, part.size).reshape(part.shape)
        # Box & Muller 1958: two normals from two uniforms
        radius = np.float32(std) * np.sqrt(-2 * np.log(1 - uniforms[:, 0]))
        angle = np.float32(2 * np.pi) * uniforms[:, 1]
        np.multiply(radius, np.cos(angle), out=part[:, 0])
        np.multiply(radius, np.sin(angle), out=part[:, 1])


def uniform(rng: np.random.RandomState, size: int) -> np.ndarray:
    """float32 in [0, 1) from the low 24 bits of each 32-bit integer of the generator."""
    integers = rng.randint(0, 1 << 32, size, np.uint32)  # as rng.bytes, in an eighth of its time
    return (integers & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)
