"""What the flags of a run name, opened and checked before anything is computed."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from llmc_jax import compilation_cache, ffi, machine, ops
from llmc_jax.config import BadInput, ModelConfig, TrainConfig, canonical_model
from llmc_jax.data.loader import TokenLoader
from llmc_jax.evaluation.multiple_choice import Accuracy, accuracy, answer, fit_questions
from llmc_jax.evaluation.questions import read_questions
from llmc_jax.evaluation.scorer import make_scorer
from llmc_jax.interop.source import names_no_file, open_model
from llmc_jax.models.gpt2 import Params
from llmc_jax.training import parallel, processes
from llmc_jax.training.initial_state import find_weights
from llmc_jax.training.profile import profiled_steps
from llmc_jax.training.resume import run_before
from llmc_jax.training.trackers import require_trackers


class Setup(NamedTuple):
    """A run's options with every default filled in, and what they name."""

    cfg: TrainConfig
    model: ModelConfig
    weights: list[Params]  # read from a file that --model names; who makes the state takes them
    mesh: Mesh
    ops: ops.Ops
    op_names: dict[str, str]
    train_data: TokenLoader
    val_data: TokenLoader | None  # None: no validation
    hellaswag: Callable[[Params, Callable], Accuracy] | None
    record: dict  # what checkpoints say of the run besides the state and the options
    cache: str  # where compiled programs are kept


def meet(cfg: TrainConfig) -> None:
    """Check what `cfg` says by itself, then meet the other processes. Raises BadInput."""
    require_trackers(cfg)
    refuse_numbers(cfg)
    parallel.select_devices(cfg.devices)
    refuse_mapping(cfg)
    processes.start(cfg)


def set_up(cfg: TrainConfig) -> Setup:
    """Open and check all that `cfg` names, the same in all processes. Raises BadInput."""
    with processes.all_or_none():
        before = run_before(cfg)
        model, weights = processes.in_turn(partial(find_model, cfg.model, before))
        refuse_other_weights(cfg, model, weights, before)
        ffi.select_isa(cfg.cpu_isa)
        cache = compilation_cache.enable(cfg.compilation_cache, names=bool(cfg.profile_steps))
        mesh = parallel.make_mesh()
        chosen, names = ops.select(cfg.ops, jax.default_backend(), model.HS)
        data = open_data(cfg, model, mesh.size)
        cfg = resolve(cfg, data[0], mesh.size)
        hellaswag = open_hellaswag(cfg, model, chosen, mesh)
    record = run_record(model, names, data, mesh.size)
    processes.refuse_differences(what_must_agree(cfg, record, data))
    weights = [] if weights is None else [weights]
    return Setup(cfg, model, weights, mesh, chosen, names, *data, hellaswag, record, cache)


def refuse_numbers(cfg: TrainConfig) -> None:
    """Raises BadInput for numbers that no training can be made with, as the step would have them:
    in float32 and int32."""
    smallest, largest = (float(getattr(np.finfo(np.float32), name)) for name in ("tiny", "max"))
    for flag in ("learning_rate", "final_lr_fraction", "weight_decay", "adam_eps"):
        if not getattr(cfg, flag) <= largest:
            raise BadInput(f"--{flag}={getattr(cfg, flag)} must be finite in float32.")
    for flag in ("max_steps", "schedule_steps", "warmup_steps"):
        if getattr(cfg, flag) >= 2**31:
            raise BadInput(f"--{flag}={getattr(cfg, flag)} must be below {2**31}.")
    for flag in ("adam_beta1", "adam_beta2"):
        if not (0 <= getattr(cfg, flag) < 1 and np.float32(getattr(cfg, flag)) < 1):
            raise BadInput(
                f"--{flag}={getattr(cfg, flag)} must be from 0 to below 1: AdamW divides by what "
                f"it leaves of 1; the usual is {getattr(TrainConfig, flag)}."
            )
    if cfg.adam_eps < smallest:
        raise BadInput(
            f"--adam_eps={cfg.adam_eps} must be above 0: AdamW divides by it where gradients are "
            f"0; the usual is {TrainConfig.adam_eps}."
        )
    if cfg.grad_clip and not smallest <= cfg.grad_clip:
        raise BadInput(
            f"--grad_clip={cfg.grad_clip} is 0 in float32, where nothing would be left of a "
            f"gradient; the usual is {TrainConfig.grad_clip}, and 0 is no clipping."
        )
    if cfg.val_every and not cfg.val_batches:
        raise BadInput("--val_batches=0 is no validation; give --val_every=0 for none.")
    if not 0 <= cfg.seed < 2**32:
        raise BadInput(f"--seed={cfg.seed} must be from 0 to {2**32 - 1}.")


def refuse_mapping(cfg: TrainConfig) -> None:
    """Raises BadInput where --mapper cannot do what is asked for."""
    if cfg.mapper == "pmap" and cfg.zero_stage:
        raise BadInput(
            f"--mapper=pmap keeps the whole state on every device; with "
            f"--zero_stage={cfg.zero_stage} take --mapper=shard_map."
        )


def refuse_long_sequences(cfg: TrainConfig, model: ModelConfig) -> None:
    """Raises BadInput where the model has no positions for --sequence_length."""
    if cfg.sequence_length > model.maxT:
        raise BadInput(
            f"--sequence_length={cfg.sequence_length} is longer than --model={cfg.model} can "
            f"take; use at most {model.maxT}."
        )


def find_model(name: str, before: dict | None) -> tuple[ModelConfig, Params | None]:
    """Sizes of the model `name`, and its weights where it is a file.

    before: what the checkpoint to go on from says of its run, which needs that file no more. Raises
    BadInput where there is no such model.
    """
    if before and before["config"].get("model", name) == name and names_no_file(name):
        return ModelConfig(**before["model"]), None
    return open_model(name)


def refuse_other_weights(
    cfg: TrainConfig, model: ModelConfig, weights: Params | None, before: dict | None
) -> None:
    """Raises BadInput where --init_from names weights and --model does too, or other ones.

    before: what the checkpoint to go on from says of its run, None where there is none.
    """
    if not cfg.init_from:
        return
    if weights is not None:
        raise BadInput(
            f"--model={cfg.model} and --init_from={cfg.init_from} both name weights; give one."
        )
    if before is None:  # a run that goes on has weights of its own
        find_weights(cfg, model)


def open_data(
    cfg: TrainConfig, model: ModelConfig, devices: int
) -> tuple[TokenLoader, TokenLoader | None]:
    """The training and the validation loader (None where there is no validation)."""
    refuse_long_sequences(cfg, model)
    llmc = (cfg.batch_size, devices) if cfg.shuffle_order == "llmc" else None
    sizes = dict(T=cfg.sequence_length, V=model.V, llmc=llmc)
    shuffle = cfg.shuffle and not cfg.overfit_single_batch
    train = TokenLoader("train_data", cfg.train_data, shuffle=shuffle, seed=cfg.seed, **sizes)
    val = TokenLoader("val_data", cfg.val_data, **sizes) if cfg.val_every else None
    return train, val


def resolve(cfg: TrainConfig, train: TokenLoader, devices: int) -> TrainConfig:
    """`cfg` with every default that depends on data or devices filled in, checked."""
    micro_batch = cfg.batch_size * cfg.sequence_length * devices
    total = micro_batch if cfg.total_batch_size == -1 else cfg.total_batch_size
    if total <= 0 or total % micro_batch:
        raise no_multiple(cfg, total, devices)
    if total // micro_batch >= 2**31:
        raise BadInput(
            f"--total_batch_size={total} is {total // micro_batch} micro-batches of {micro_batch} "
            f"tokens; it must be below {2**31} of them."
        )
    max_steps = cfg.max_steps
    if max_steps == -1:
        max_steps = train.num_sequences * cfg.sequence_length // total
        if max_steps == 0:
            raise BadInput(
                f"--train_data={cfg.train_data} is smaller than one step of {total} tokens; "
                f"lower --total_batch_size or give --max_steps."
            )
    refuse_alone(cfg)
    cfg = dataclasses.replace(
        cfg, model=canonical_model(cfg.model), total_batch_size=total, max_steps=max_steps
    )
    profiled_steps(cfg)
    return cfg


def no_multiple(cfg: TrainConfig, total: int, devices: int) -> BadInput:
    """The error that `total` tokens are not whole micro-batches, with what would be."""
    micro_batch = cfg.batch_size * cfg.sequence_length * devices
    below = max(0, total) // micro_batch * micro_batch
    near = " and ".join(str(n) for n in (below, below + micro_batch) if n)
    rows = total // (cfg.sequence_length * devices)
    smaller = next((B for B in range(min(cfg.batch_size, rows), 0, -1) if rows % B == 0), 0)
    whole_rows = smaller and rows * cfg.sequence_length * devices == total
    return BadInput(
        f"--total_batch_size={total} is not a multiple of the {micro_batch} tokens of one "
        f"micro-batch (--batch_size {cfg.batch_size} x --sequence_length "
        f"{cfg.sequence_length} x {devices} devices); the nearest that work: {near}"
        f"{f'; or --batch_size={smaller}' if whole_rows else ''}."
    )


def refuse_alone(cfg: TrainConfig) -> None:
    """Raises BadInput for flags that do nothing without another."""
    if not cfg.output_dir:
        flags = ("resume", "checkpoint_every", "checkpoint_minutes", "major_checkpoint_every")
        for flag in flags:
            if getattr(cfg, flag):
                raise BadInput(f"--{flag} needs --output_dir, the directory of the run.")
    if cfg.keep_checkpoints and not cfg.saves_checkpoints:
        raise BadInput(
            f"--keep_checkpoints={cfg.keep_checkpoints} has none to keep; say when they are saved, "
            f"with --checkpoint_every or --checkpoint_minutes, or leave it out."
        )
    if not cfg.resume and (cfg.resume_step != -1 or cfg.reschedule):
        flag = "reschedule" if cfg.reschedule else "resume_step"
        raise BadInput(f"--{flag} is for a run that is continued; add --resume.")


def place_after(setup: Setup, step: int) -> tuple[int, int]:
    """Where llm.c is in its order of the training data after `step` steps: (shard, sample)."""
    sequences = step * setup.cfg.total_batch_size // setup.cfg.sequence_length
    return setup.train_data.order.place(sequences)


def open_hellaswag(
    cfg: TrainConfig, model: ModelConfig, chosen: ops.Ops, mesh
) -> Callable[[Params, Callable], Accuracy] | None:
    """A function of the parameters, and of a `look` as scorers take it, that evaluates --hellaswag;
    None where there is none."""
    if not cfg.hellaswag:
        return None
    if not cfg.val_every:
        raise BadInput("--hellaswag is evaluated after validations; give --val_every.")
    questions = read_questions("hellaswag", cfg.hellaswag)
    flag = f"--hellaswag={cfg.hellaswag}"
    questions, cut = fit_questions(flag, questions, model, cfg.sequence_length)
    if cut:
        print(f"{flag}: {cut} of {len(questions)} contexts are longer than --sequence_length")
    score = make_scorer(chosen, model, cfg.dtype, mesh, batch_size=cfg.batch_size)
    return lambda params, look: accuracy(answer(partial(score, look=look), params, questions))


def what_must_agree(cfg: TrainConfig, record: dict, data) -> dict:
    """What has to be the same in all processes of a run, by the names a user knows."""
    own = ("process_id", "coordinator_address", "coordinator_timeout", "heartbeat_timeout")
    flags = {f"--{name}": v for name, v in dataclasses.asdict(cfg).items() if name not in own}
    contents = {
        f"what --{name} reads": loader and loader.description
        for name, loader in zip(("train_data", "val_data"), data, strict=True)
    }
    files = {name: flags[name] for name in ("--train_data", "--val_data")}
    made_with = record["made_with"]
    # Files first: what follows from them, like --max_steps, differs with them.
    return files | contents | flags | {f"the {key}": made_with[key] for key in ("ops", "versions")}


def run_record(model: ModelConfig, names: dict[str, str], data, devices: int) -> dict:
    """What the checkpoints of a run say of what it is made of and with.

    data: the loaders of training and of validation, or None.
    """
    train, val = data
    packages = ("jax", "jaxlib", "numpy", "orbax-checkpoint", "llmc_jax")
    return dict(
        model=dataclasses.asdict(model),
        data=train.description,
        val_data=val and val.description,
        devices=devices,
        made_with=dict(
            ops=" ".join(f"{op}={name}" for op, name in names.items()),
            device=f"{devices} x {jax.devices()[0].device_kind}",
            versions=" ".join(f"{name} {machine.version(name)}" for name in packages),
            revision=machine.commit() or "unknown",
        ),
    )
