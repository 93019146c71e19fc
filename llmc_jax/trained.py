"""A model with weights, from a run's checkpoint or a file: what generate and evaluate work with."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from llmc_jax import ffi, ops
from llmc_jax.config import CPU_ISAS, BadInput, ModelConfig, is_descriptor, not_saved, option
from llmc_jax.interop.source import open_model
from llmc_jax.models import gpt2
from llmc_jax.models.gpt2 import Params
from llmc_jax.ops import Ops
from llmc_jax.training import parallel, placement
from llmc_jax.training.checkpoint import Checkpointer
from llmc_jax.training.run_dir import find_checkpoints


@dataclass(frozen=True)
class TrainedConfig:
    """Options of every program that uses a model: which one, and what it is computed with."""

    run: str = option("", "directory of a run (the --output_dir of its training)", path=True)
    model: str = option(
        "",
        "instead of --run: a model file of llm.c (PATH.bin), a folder or name of Hugging Face "
        "(hf:PATH, hf:NAME)",
        path=True,
    )
    step: int = option(-1, "step of the checkpoint; -1: the newest", minimum=-1)
    sequence_length: int = option(
        -1,
        "T: tokens of context at most; -1: that of the run, or the longest the model can take",
        minimum=-1,
    )
    dtype: str = option(
        "auto",
        "type of activations and matrix products; auto: that of the run or the file",
        choices=("auto", "float32", "bfloat16"),
    )
    devices: str = option("", "cpu:N: N virtual devices on this machine's CPU, as in training")
    ops: str = option("auto", "implementation of the ops, as in training")
    cpu_isa: str = option(
        "auto", "instruction set of the C++ kernels, as in training", choices=CPU_ISAS
    )


class Trained(NamedTuple):
    """A model that can be used."""

    model: ModelConfig
    params: Params  # float32, on every device
    dtype: str  # the type it was trained or written in: float32 or bfloat16
    step: int | None = None  # of the checkpoint; None of a file
    options: Mapping = MappingProxyType({})  # those of the run

    @property
    def T(self) -> int:
        """The longest sequence it was trained on, as far as that is known."""
        return self.options.get("sequence_length", self.model.maxT)


class Opened(NamedTuple):
    """A model, and what it is computed with: all that the options of TrainedConfig say."""

    trained: Trained
    mesh: Mesh
    ops: Ops
    T: int  # tokens of context at most
    dtype: str  # of activations and matrix products


def open_by_flags(cfg: TrainedConfig, *, shortest: int = 1) -> Opened:
    """Take the devices and the instruction set that `cfg` names, and open its model.

    shortest: the least --sequence_length. Raises BadInput for what there is not.
    """
    parallel.select_devices(cfg.devices)
    ffi.select_isa(cfg.cpu_isa)
    mesh = parallel.make_mesh()
    trained = open_trained(mesh, run=cfg.run, model=cfg.model, step=cfg.step)
    T = trained.T if cfg.sequence_length == -1 else cfg.sequence_length
    longest = trained.model.maxT
    if not shortest <= T <= longest:
        raise BadInput(f"--sequence_length={T} must be from {shortest} to {longest}.")
    chosen, _ = ops.select(cfg.ops, jax.default_backend(), trained.model.HS)
    dtype = trained.dtype if cfg.dtype == "auto" else cfg.dtype
    return Opened(trained, mesh, chosen, T, dtype)


def open_trained(mesh, *, run: str, model: str, step: int = -1) -> Trained:
    """The model of the flags --run (with --step, -1: the newest checkpoint) or --model.

    Raises BadInput where both or none are given, where --step is given with --model, and where what
    is named has no weights.
    """
    if run and model:
        raise BadInput("--run and --model both name a model; give one of them.")
    if model and step != -1:
        raise BadInput(
            f"--step={step} is of a run's checkpoints, and --model={model} is none; leave it out, "
            f"or name the run with --run."
        )
    return _read_file(model, mesh) if model else _restore(run, step, mesh)


def _read_file(name: str, mesh) -> Trained:
    if is_descriptor(name) or not (name.startswith("hf:") or Path(name).is_file()):
        is_a = "is a directory" if Path(name).is_dir() else "is no file"
        raise BadInput(
            f"--model={name} {'has no weights' if is_descriptor(name) else is_a}; write a model "
            f"file of llm.c --model=PATH.bin, a folder of Hugging Face --model=hf:PATH, a run "
            f"--run=PATH."
        )
    model, weights = open_model(name)
    dtype = "float32" if weights.wte.dtype == np.float32 else "bfloat16"
    weights = jax.tree.map(lambda p: np.asarray(p, np.float32), weights)
    return Trained(model, placement.replicate(weights, mesh), dtype)


def _restore(run: str, step: int, mesh) -> Trained:
    if not run:
        raise BadInput("--run is needed: the --output_dir of a training run (or --model=FILE).")
    with Checkpointer(find_checkpoints(run)) as checkpoints:
        step = choose_step(run, step, checkpoints)
        saved = checkpoints.restore_run(step)
        model = ModelConfig(**saved["model"])
        like = placement.replicated_like(gpt2.shapes(model), mesh)
        params = checkpoints.restore_params(step, like)
        return Trained(model, params, saved["config"]["dtype"], step, saved["config"])


def choose_step(run: str | Path, step: int, checkpoints: Checkpointer) -> int:
    """The step to load of those that were saved; -1: the newest.

    Raises BadInput where it was not saved or is damaged, with one that can be had. (That is not
    taken by itself, as a resumed run would: its numbers would be another step's.)
    """
    steps, written = checkpoints.steps(), checkpoints.written_steps()
    if not steps:
        raise BadInput(
            f"{run} has no complete checkpoint; see python -m llmc_jax.checkpoint ls --run={run}."
        )
    chosen = written[-1] if step == -1 else step
    if chosen not in written:
        raise not_saved("step", step, run, steps)
    if problem := checkpoints.problem(chosen):
        whole = (s for s in reversed(steps) if s != chosen and not checkpoints.problem(s))
        other = next((f"that of step {s} is whole, take it with --step={s}" for s in whole), None)
        raise BadInput(
            f"the checkpoint {checkpoints.path(chosen)} cannot be used: {problem}; "
            f"{other or 'nor can any other of this run: name another'}."
        )
    return chosen
