"""GPT-2's initial parameters, number for number those of llm.c and of PyTorch.

Both draw normals from a 32-bit Mersenne Twister (mt19937); NumPy's legacy generator yields the
same stream of integers, so no PyTorch is needed. Reference: llm.c rand.h, gpt2_init.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np

from llmc_jax.config import ModelConfig
from llmc_jax.models import gpt2
from llmc_jax.models.gpt2 import Params

STD = 0.02
BLOCK = 16  # PyTorch makes normals 16 at a time: 8 radii, 8 angles
CHUNK = 1 << 16  # drawn at once, so that what is in between stays in the processor's cache
AHEAD = 8  # chunks of integers that may wait to become normals


def initialize(cfg: ModelConfig, seed: int, place: Callable = lambda tensor: tensor) -> Params:
    """Parameters drawn as GPT-2 does, NumPy float32 arrays in llm.c's layout.

    Weights are N(0, 0.02), those that feed the residual stream N(0, 0.02 / sqrt(2 L)); biases
    and the padded rows of wte are 0, layernorm weights 1. Drawn in llm.c's order: wte, wpe, then
    layer by layer qkvw, attprojw, fcw, fcprojw.

    place(tensor): what is kept of a tensor, as soon as it is made, in its stead.
    """
    rng, shapes = np.random.RandomState(seed), gpt2.shapes(cfg)
    residual_std = STD / np.sqrt(2 * cfg.L)

    def constant(shape, value: float):
        return place(np.full(shape.shape, value, shape.dtype))

    with ThreadPoolExecutor(1) as worker:

        def normal(shape, std: float, rows: int | None = None):
            """A matrix of which only the first `rows` are drawn."""
            tensor = np.zeros(shape.shape, shape.dtype)
            draw(rng, tensor[:rows], std, worker)
            return place(tensor)

        def block(shape: gpt2.Block) -> gpt2.Block:
            made = dict(
                ln1w=constant(shape.ln1w, 1),
                qkvw=normal(shape.qkvw, STD),
                attprojw=normal(shape.attprojw, residual_std),
                ln2w=constant(shape.ln2w, 1),
                fcw=normal(shape.fcw, STD),
                fcprojw=normal(shape.fcprojw, residual_std),
            )
            biases = {
                name: constant(s, 0) for name, s in shape._asdict().items() if name not in made
            }
            return gpt2.Block(**made, **biases)

        return Params(
            wte=normal(shapes.wte, STD, rows=cfg.V),
            wpe=normal(shapes.wpe, STD),
            block=tuple(map(block, shapes.block)),
            lnfw=constant(shapes.lnfw, 1),
            lnfb=constant(shapes.lnfb, 0),
        )


def draw(rng: np.random.RandomState, out: np.ndarray, std: float, worker: Executor) -> None:
    """Fill `out` (float32) with N(0, std) as torch.Tensor.normal_ does.

    worker: one thread, which makes normals of the integers that are drawn here meanwhile.
    """
    assert out.size % BLOCK == 0, "PyTorch draws a rest of less than 16 in another way"
    flat, waiting = out.reshape(-1), deque()
    scratch = np.empty((4, min(CHUNK, out.size) // 2), np.float32)
    for start in range(0, out.size, CHUNK):
        part = flat[start : start + CHUNK]
        # as rng.bytes, in an eighth of its time
        integers = rng.randint(0, 1 << 32, part.size, np.uint32)
        rows = scratch[:, : part.size // 2]
        waiting.append(worker.submit(make_normal, integers, part, np.float32(std), rows))
        if len(waiting) > AHEAD:
            waiting.popleft().result()
    for chunk in waiting:
        chunk.result()


def make_normal(integers: np.ndarray, out: np.ndarray, std: np.float32, scratch: np.ndarray):
    """Normals of uint32 integers, two of two (Box & Muller 1958); scratch: (4, half as many).

    What is in between stays in memory that is there: the system's calls for more would take as long
    as the arithmetic.
    """
    uniforms, radius, angle = scratch[:2].reshape(-1), *scratch[2:]
    uniform(integers, uniforms)
    pairs, out = (x.reshape(-1, 2, BLOCK // 2) for x in (uniforms, out))
    halves = radius.reshape(pairs[:, 0].shape), angle.reshape(pairs[:, 0].shape)
    np.subtract(1, pairs[:, 0], out=halves[0])
    np.multiply(np.float32(2 * np.pi), pairs[:, 1], out=halves[1])
    np.log(radius, out=radius)
    np.multiply(-2, radius, out=radius)
    np.sqrt(radius, out=radius)
    np.multiply(std, radius, out=radius)
    cosine, sine = scratch[:2]
    np.cos(angle, out=cosine)
    np.sin(angle, out=sine)
    np.multiply(halves[0], cosine.reshape(halves[0].shape), out=out[:, 0])
    np.multiply(halves[0], sine.reshape(halves[0].shape), out=out[:, 1])


def uniform(integers: np.ndarray, out: np.ndarray) -> None:
    """float32 in [0, 1) from the low 24 bits of each 32-bit integer of the generator."""
    np.bitwise_and(integers, 0xFFFFFF, out=integers)
    np.multiply(integers, np.float32(2**-24), out=out, dtype=np.float32, casting="same_kind")
