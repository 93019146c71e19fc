"""The state that a run begins with: drawn, of another run, or of its own checkpoint."""

from functools import partial

import jax
import numpy as np

from llmc_jax.config import BadInput, ModelConfig, TrainConfig
from llmc_jax.models import gpt2
from llmc_jax.models.gpt2 import Params
from llmc_jax.models.initialize import initialize
from llmc_jax.training import parallel, processes, shards
from llmc_jax.training.checkpoint import Checkpointer
from llmc_jax.training.resume import open_weights
from llmc_jax.training.step import TrainState, gradient_memory, init_state


def make_state(
    model: ModelConfig,
    weights: Params | None,
    cfg: TrainConfig,
    checkpoints: Checkpointer | None,
    start: int,
    mesh,
) -> TrainState:
    """The initial state, or that of checkpoint `start` if it is not 0.

    weights: what --model read from a file; None: they are --init_from's, or drawn.
    """
    stage = shards.stage_in_force(cfg, mesh.size)
    if start == 0:
        if cfg.init_from:
            weights = weights_of_another_run(cfg, model, weights)
        elif weights is None:
            weights = initialize(model, cfg.seed)
        weights = jax.tree.map(lambda p: np.asarray(p, np.float32), weights)
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            state = init_state(weights)
        return parallel.place_state(state, mesh, stage)
    like = jax.eval_shape(init_state, gpt2.shapes(model))
    if stage or processes.several():
        like = parallel.on_host(like)
        state = parallel.place_state(checkpoints.restore_state(start, like), mesh, stage)
    else:
        state = checkpoints.restore_state(start, parallel.replicated_like(like, mesh))
    print(f"resuming {cfg.output_dir} at step {start}")
    return state


def weights_of_another_run(cfg: TrainConfig, model: ModelConfig, weights) -> Params:
    """The parameters of --init_from. Raises BadInput where they are not of the model asked for."""
    if weights is not None:
        raise BadInput(
            f"--model={cfg.model} and --init_from={cfg.init_from} both name weights; give one."
        )
    checkpoints, step = open_weights(cfg.init_from)
    saved = ModelConfig(**checkpoints.restore_run(step)["model"])
    if saved != model:
        raise BadInput(
            f"--init_from={cfg.init_from} has L {saved.L}, NH {saved.NH}, C {saved.C}, V {saved.V} "
            f"and --model={cfg.model} has L {model.L}, NH {model.NH}, C {model.C}, V {model.V}; "
            f"give the --model of that run."
        )
    print(f"starting from the weights of {checkpoints.path(step)}")
    return checkpoints.restore_params(step, parallel.on_host(gpt2.shapes(model)))


def state_like(model: ModelConfig, cfg: TrainConfig, mesh):
    """The state and the memory for gradients as shapes: all that compiling has to know of them."""
    shapes, stage = gpt2.shapes(model), shards.stage_in_force(cfg, mesh.size)
    state = parallel.state_like(jax.eval_shape(init_state, shapes), mesh, stage)
    gradients = jax.eval_shape(partial(gradient_memory, model=model, cfg=cfg), shapes)
    return state, parallel.replicated_like(gradients, mesh)
