"""Memory for a step's temporaries that lasts from step to step, on a CPU.

XLA takes temporaries from the C library when a step begins and gives them back when it ends, and
the system clears every page again when the next step touches it: a fifth of a small step's time,
and 7 % of a step of GPT-2 124M with B=4, T=1024, on a virtual machine whose host takes free pages
away. But XLA also lays temporaries in an argument that is donated and that nobody reads, until the
result is written that takes its place. So a step has arguments and results for nothing else: its
rooms.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from llmc_jax import ffi
from llmc_jax.config import RECOMPUTE, ModelConfig, TrainConfig
from llmc_jax.models import gpt2
from llmc_jax.ops import Ops
from llmc_jax.ops.op import size, uninitialized
from llmc_jax.training import parallel, placement
from llmc_jax.training.step import in_factors
from llmc_jax.training.zero import stage_in_force

SMALLEST = 4096  # bytes


def rooms_like(
    ops: Ops, model: ModelConfig, cfg: TrainConfig, platform: str, devices: int
) -> list[jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the rooms of the step that `cfg` describes.

    As large as what it needs all at once when it needs most, so that they add nothing (to a small
    step 3 %):

    | kernels | the step                 | rooms for                                             |
    |---------|--------------------------|-------------------------------------------------------|
    | ours    | several micro-batches    | what the layers keep for backward, the sums of all    |
    |         |                          | gradients, and wte's gradient once more               |
    | ours    | one, with gradients in   | what the layers keep, and wte's gradient              |
    |         | factors (ops/factors.py),|                                                       |
    |         | or at --recompute=4      |                                                       |
    | ours    | one                      | what the layers keep or their gradients, whichever is |
    |         |                          | more, and wte's gradient                              |
    | ours    | one, on several devices  | all gradients, which the devices add up               |
    | jnp     | several, or devices      | all gradients, which are added up                     |
    | jnp     | one                      | all gradients, where they are more than what is kept  |
    |         |                          | and not at --recompute=4; else jnp needs most         |
    |         |                          | elsewhere, and there are none                         |

    None on other platforms, whose allocators keep memory, nor where gradients are in parts (ZeRO).
    """
    if platform != "cpu" or stage_in_force(cfg, devices) or not ffi.available("cpu"):
        return []
    tokens = cfg.batch_size * cfg.sequence_length * devices
    micro_batches = max(1, cfg.total_batch_size // tokens)
    accumulates = micro_batches > 1
    added = accumulates or devices > 1  # which is done in float32
    gradients = gpt2.gradient_shapes(model, jnp.float32 if added else cfg.dtype)
    kept = [_kept_by_a_layer(ops, model, cfg)] * model.L
    ours = ops.classifier.rounds_weights
    last_level = cfg.recompute == max(RECOMPUTE)
    if ours and accumulates:
        needed = [kept, gradients, gradients.wte]
    elif ours and not added and (last_level or in_factors(cfg, model, micro_batches, devices)):
        needed = [kept, gradients.wte]
    elif ours and not added:
        needed = [max(kept, gradients.block, key=size), gradients.wte]
    elif added or (size(gradients) > size(kept) and not last_level):
        needed = gradients
    else:
        needed = []
    sizes = [size(x) for x in jax.tree.leaves(needed)]
    return [jax.ShapeDtypeStruct((-(-n // 4),), jnp.float32) for n in sizes if n >= SMALLEST]


def placed_rooms_like(ops: Ops, model: ModelConfig, cfg: TrainConfig, mesh) -> list:
    """The step's rooms as shapes, on the mesh."""
    platform = mesh.devices.flat[0].platform
    return placement.replicated_like(rooms_like(ops, model, cfg, platform, mesh.size), mesh)


def maker_of_rooms(like: list[jax.ShapeDtypeStruct], mesh) -> Callable[[], list[jax.Array]]:
    """A compiled function that gives a step's rooms of these shapes; they are not touched yet."""
    now = np.zeros((), np.float32)
    return parallel.map_maker(lambda: uninitialized(like, when=now), mesh).lower().compile()


def make_rooms(ops: Ops, model: ModelConfig, cfg: TrainConfig, mesh) -> list[jax.Array]:
    """The rooms of the step that `cfg` describes."""
    return maker_of_rooms(placed_rooms_like(ops, model, cfg, mesh), mesh)()


def _kept_by_a_layer(ops: Ops, model: ModelConfig, cfg: TrainConfig) -> gpt2.BlockActs:
    one = dataclasses.replace(model, L=1)
    tokens = jax.ShapeDtypeStruct((cfg.batch_size, cfg.sequence_length), jnp.int32)
    trunk = partial(gpt2.trunk, ops, cfg=one, recompute=cfg.recompute, dtype=cfg.dtype)
    _, (acts,) = jax.eval_shape(trunk, gpt2.shapes(one), tokens)
    return acts
