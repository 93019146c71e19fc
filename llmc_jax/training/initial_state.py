"""The state that a run begins with: drawn, of another run, or of its own checkpoint."""

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from llmc_jax.config import MODELS, BadInput, ModelConfig, TrainConfig
from llmc_jax.models import gpt2
from llmc_jax.models.gpt2 import Params
from llmc_jax.models.initialize import initialize
from llmc_jax.training import placement, processes, zero
from llmc_jax.training.checkpoint import Checkpointer
from llmc_jax.training.resume import open_weights
from llmc_jax.training.step import TrainState, init_state, state_shapes


def make_state(
    model: ModelConfig,
    weights: list[Params],
    cfg: TrainConfig,
    checkpoints: Checkpointer | None,
    start: int | None,
    mesh,
    zeros: Future | None,
) -> TrainState:
    """The initial state, or that of checkpoint `start` if it is not None.

    weights: what --model read from a file, and afterwards nothing: they are as large as the
    parameters, and would be there for the whole run. Empty: they are --init_from's, or drawn.
    zeros: what `maker_of_moments` makes, which may be under way; None where there is a `start`.
    """
    if start is not None:
        weights.clear()
        return restored_state(model, cfg, checkpoints, start, mesh)
    if cfg.init_from:
        weights.append(weights_of_another_run(cfg, model))
    place = partial(placement.place_params, mesh=mesh, cfg=cfg)
    params = placed(weights, place) if weights else initialize(model, cfg.seed, place)
    m, v = zeros.result()
    counters = placement.replicate(init_state(())[3:], mesh)
    return TrainState(params, m, v, *counters)


def placed(weights: list[Params], place: Callable) -> Params:
    """The parameters of which `weights` is a list, taken out of it and placed one after another, so
    that there are never all of them twice."""
    leaves, structure = jax.tree.flatten(weights.pop())
    leaves.reverse()
    params = [place(np.asarray(leaves.pop(), np.float32)) for _ in range(len(leaves))]
    return structure.unflatten(params)


def maker_of_moments(like: TrainState) -> Callable[[], tuple[Params, Params]]:
    """A compiled function that gives (m, v), which begin as zeros, of the shapes, dtypes and
    placement that `like` says (the same for both), made where they will be."""

    def zeros():  # all in one program: it takes less long than one each
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like.m)

    places = jax.tree.map(lambda x: x.sharding, like.m)
    make = jax.jit(zeros, out_shardings=places).lower().compile()
    return lambda: (make(), make())


def restored_state(
    model: ModelConfig, cfg: TrainConfig, checkpoints: Checkpointer, start: int, mesh
) -> TrainState:
    """The state of the run's own checkpoint."""
    if zero.stage_in_force(cfg, mesh.size) or processes.several():
        like = placement.host_like(state_shapes(model))
        state = placement.place_state(checkpoints.restore_state(start, like), mesh, cfg)
    else:
        state = checkpoints.restore_state(start, state_like(model, cfg, mesh))
    print(f"resuming {cfg.output_dir} at step {start}")
    return state


def find_weights(cfg: TrainConfig, model: ModelConfig) -> tuple[Checkpointer, int]:
    """The checkpoint of --init_from. Raises BadInput where it is none of the model asked for."""
    checkpoints, step = open_weights(cfg.init_from)
    saved = ModelConfig(**checkpoints.restore_run(step)["model"])
    if saved != model:
        same = next((name for name, sizes in MODELS.items() if sizes == saved), None)
        remedy = f"give --model={same}"
        if same is None:  # it was a file, which has weights of its own: two would be named
            remedy = (
                "no name of --model has such sizes, so make a file of that run with "
                "python -m llmc_jax.export, and give --model=FILE without --init_from"
            )
        raise BadInput(
            f"--init_from={cfg.init_from} has L {saved.L}, NH {saved.NH}, C {saved.C}, V {saved.V} "
            f"and --model={cfg.model} has L {model.L}, NH {model.NH}, C {model.C}, V {model.V}; "
            f"{remedy}."
        )
    return checkpoints, step


def weights_of_another_run(cfg: TrainConfig, model: ModelConfig) -> Params:
    """The parameters of --init_from. Raises BadInput as `find_weights` does."""
    checkpoints, step = find_weights(cfg, model)
    print(f"starting from the weights of {checkpoints.path(step)}")
    return checkpoints.restore_params(step, placement.host_like(gpt2.shapes(model)))


def state_like(model: ModelConfig, cfg: TrainConfig, mesh) -> TrainState:
    """The state as shapes: all that compiling has to know of it."""
    return placement.state_like(state_shapes(model), mesh, cfg)
