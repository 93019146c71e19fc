"""Train a GPT-2: python -m llmc_jax.train --flagfile=configs/quickstart.flags."""

import dataclasses
import shlex
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import jax
import jaxlib
import numpy as np

from llmc_jax import ffi, ops, program
from llmc_jax.config import (
    BadInput,
    ModelConfig,
    TrainConfig,
    canonical_model,
    changes,
)
from llmc_jax.data.loader import TokenLoader
from llmc_jax.data.tokenizer import EOT, tokenizer
from llmc_jax.interop.source import open_model
from llmc_jax.models import gpt2
from llmc_jax.models.gpt2 import Params
from llmc_jax.models.initialize import initialize
from llmc_jax.training import parallel
from llmc_jax.training.checkpoint import Checkpointer
from llmc_jax.training.logger import Logger, read_metrics
from llmc_jax.training.plot import plot_losses
from llmc_jax.training.progress import Progress
from llmc_jax.training.report import Report
from llmc_jax.training.run_dir import RunDir, open_run_dir
from llmc_jax.training.sampler import make_sampler
from llmc_jax.training.step import TrainState, eval_step, gradient_memory, init_state, train_step


def main(cfg: TrainConfig) -> None:
    """Check everything the user gave, then train, then say where the results are."""
    model, weights = open_model(cfg.model)
    ffi.select_isa(cfg.cpu_isa)
    mesh = parallel.make_mesh()
    chosen, names = ops.select(cfg.ops, jax.default_backend(), model.C // model.NH)
    data = open_data(cfg, model, mesh.size)
    cfg = resolve(cfg, *data, mesh.size)
    run = open_run_dir(cfg.output_dir, resume=cfg.resume) if cfg.output_dir else None
    # Closing the checkpoints, whatever happens, waits for the one being written.
    with Checkpointer(run.checkpoints) if run else nullcontext() as checkpoints:
        start = resume_point(checkpoints, cfg)
        print_banner(cfg, model, names, mesh)
        train(cfg, model, weights, mesh, chosen, names, data, run, checkpoints, start)
    if run:
        report_files(run, checkpoints)


def train(cfg, model, weights, mesh, chosen, names, data, run, checkpoints, start) -> None:
    """The loop from step `start`, in llm.c's order: validate, sample, save, step."""
    began = time.perf_counter()
    train_data, val_data = data
    train_data.position = start * cfg.total_batch_size // cfg.sequence_length
    state = make_state(model, weights, cfg, checkpoints, start, mesh)
    step_options = dict(ops=chosen, model=model, cfg=cfg)
    memory = parallel.replicate(gradient_memory(state.params, model, cfg), mesh)
    update = compile_update(partial(train_step, **step_options), state, memory, cfg, mesh)
    ffi.trim_memory()
    evaluate = parallel.map_eval_step(partial(eval_step, **step_options), mesh)
    sample = make_sampler(chosen, model, cfg.dtype)
    logger, progress = Logger(run, start), Progress(start, cfg.max_steps)
    report = Report(logger, progress, cfg.total_batch_size)

    def due(every: int, step: int) -> bool:
        """Whether what is done every so many steps and at the end is due at `step`.

        A resumed run did it before its checkpoint was written.
        """
        resumed_here = step == start and start > 0
        return every > 0 and (step % every == 0 or step == cfg.max_steps) and not resumed_here

    for step in range(start, cfg.max_steps + 1):
        validate_now = due(cfg.val_every, step)
        sample_now = due(cfg.sample_every, step) and step > 0
        save_now = due(cfg.checkpoint_every, step) and step > 0
        pause = validate_now or sample_now or save_now
        if pause:
            report.catch_up()
        if validate_now:
            loss = validate(evaluate, state, val_data, cfg, mesh)
            logger.val(step, loss, cfg.total_batch_size)
            progress.message(f"step {step:4d}/{cfg.max_steps} | validation loss {loss:.6f}")
        if sample_now:
            tokens = list(sample(state.params, [EOT], cfg.sample_tokens))
            text = tokenizer().decode([t for t in tokens if t != EOT])
            progress.message(f"sample at step {step}:\n---\n{text}\n---")
        if save_now:
            checkpoints.save(state, run_record(cfg, model, names, step), step)
        if pause:
            report.restart_clock()
        if step == cfg.max_steps:
            break
        if cfg.overfit_single_batch:
            train_data.position = 0
        state, memory, metrics = update(state, memory, *train_batch(train_data, cfg, mesh))
        report.dispatched(step, metrics)
    report.catch_up()
    progress.close()
    if start == cfg.max_steps:
        print(f"already trained to step {start}; nothing to do")
    else:
        print(f"trained {cfg.max_steps - start} steps in {time.perf_counter() - began:.0f} s")


def open_data(
    cfg: TrainConfig, model: ModelConfig, devices: int
) -> tuple[TokenLoader, TokenLoader | None]:
    """The training and the validation loader (None where there is no validation)."""
    if cfg.sequence_length > model.maxT:
        raise BadInput(
            f"--sequence_length={cfg.sequence_length} is longer than --model={cfg.model} can "
            f"take; use at most {model.maxT}."
        )
    llmc = (cfg.batch_size, devices) if cfg.shuffle_order == "llmc" else None
    sizes = dict(T=cfg.sequence_length, V=model.V, llmc=llmc)
    shuffle = cfg.shuffle and not cfg.overfit_single_batch
    train = TokenLoader("train_data", cfg.train_data, shuffle=shuffle, seed=cfg.seed, **sizes)
    val = TokenLoader("val_data", cfg.val_data, **sizes) if cfg.val_every else None
    return train, val


def resolve(
    cfg: TrainConfig, train: TokenLoader, val: TokenLoader | None, devices: int
) -> TrainConfig:
    """`cfg` with every default that depends on data or devices filled in, checked."""
    micro_batch = cfg.batch_size * cfg.sequence_length * devices
    total = micro_batch if cfg.total_batch_size == -1 else cfg.total_batch_size
    if total <= 0 or total % micro_batch:
        nearest = max(1, round(total / micro_batch)) * micro_batch
        raise BadInput(
            f"--total_batch_size={total} is not a multiple of the {micro_batch} tokens of one "
            f"micro-batch (--batch_size {cfg.batch_size} x --sequence_length "
            f"{cfg.sequence_length} x {devices} devices); the nearest is {nearest}."
        )
    max_steps = cfg.max_steps
    if max_steps == -1:
        max_steps = train.num_sequences * cfg.sequence_length // total
        if max_steps == 0:
            raise BadInput(
                f"--train_data={cfg.train_data} is smaller than one step of {total} tokens; "
                f"lower --total_batch_size or give --max_steps."
            )
    rows = cfg.batch_size * devices
    if val and val.num_sequences < rows:
        raise BadInput(
            f"--val_data={cfg.val_data} holds {val.num_sequences} sequences of "
            f"{cfg.sequence_length} tokens and a batch needs {rows}; lower --batch_size or give "
            f"more text."
        )
    if (cfg.checkpoint_every or cfg.resume) and not cfg.output_dir:
        flag = "resume" if cfg.resume else "checkpoint_every"
        raise BadInput(f"--{flag} needs --output_dir, the directory of the run.")
    return dataclasses.replace(
        cfg, model=canonical_model(cfg.model), total_batch_size=total, max_steps=max_steps
    )


def resume_point(checkpoints: Checkpointer | None, cfg: TrainConfig) -> int:
    """The step to start from: the newest checkpoint's with --resume, or 0.

    Raises BadInput where the checkpoint is of a run with other options.
    """
    step = checkpoints.latest_step() if checkpoints and cfg.resume else None
    if step is None:
        return 0
    if different := changes(checkpoints.restore_run(step)["config"], cfg):
        raise BadInput(
            f"--resume: the run in {cfg.output_dir} was started with other options "
            f"({'; '.join(different)}); give the old ones, or another --output_dir."
        )
    return step


def make_state(
    model: ModelConfig,
    weights: Params | None,
    cfg: TrainConfig,
    checkpoints: Checkpointer | None,
    start: int,
    mesh,
) -> TrainState:
    """The initial state, or that of checkpoint `start` if it is not 0.

    weights: what --model read from a file; None: they are drawn.
    """
    if start == 0:
        if weights is None:
            weights = initialize(model, cfg.seed)
        weights = jax.tree.map(lambda p: np.asarray(p, np.float32), weights)
        return parallel.replicate(init_state(weights), mesh)
    like = parallel.replicated_like(jax.eval_shape(init_state, gpt2.shapes(model)), mesh)
    state = checkpoints.restore_state(start, like)
    print(f"resuming {cfg.output_dir} at step {start}")
    return state


def compile_update(step, state: TrainState, memory, cfg: TrainConfig, mesh):
    """The training step, mapped and compiled, with a line on time and memory."""
    began = time.perf_counter()
    rows = cfg.total_batch_size // cfg.sequence_length
    micro_rows = cfg.batch_size * mesh.size
    shape = (rows // micro_rows, micro_rows, cfg.sequence_length)
    batch = parallel.split(np.zeros(shape, np.int32), mesh, parallel.MICRO_BATCHES)
    compiled = parallel.map_train_step(step, mesh).lower(state, memory, batch, batch).compile()
    gibibytes = parallel.planned_bytes(compiled) / 2**30
    print(
        f"compiled the step in {time.perf_counter() - began:.1f} s; it takes {gibibytes:.2f} GiB",
        flush=True,
    )
    return compiled


def train_batch(loader: TokenLoader, cfg: TrainConfig, mesh):
    """Inputs and targets of the next step on the devices, (A, B*D, T)."""
    rows = cfg.total_batch_size // cfg.sequence_length
    shape = (-1, cfg.batch_size * mesh.size, cfg.sequence_length)
    batch = tuple(x.reshape(shape) for x in loader.next(rows))
    return parallel.split(batch, mesh, parallel.MICRO_BATCHES)


def validate(evaluate, state: TrainState, loader: TokenLoader, cfg: TrainConfig, mesh) -> float:
    """Mean loss over the first --val_batches batches of the validation data."""
    rows = cfg.batch_size * mesh.size
    batches = loader.num_sequences // rows
    if cfg.val_batches != -1:
        batches = min(batches, cfg.val_batches)
    loader.position = 0
    losses = [
        evaluate(state.params, *parallel.split(loader.next(rows), mesh, parallel.ROWS))
        for _ in range(batches)
    ]
    return float(np.mean(jax.device_get(losses)))


def run_record(cfg: TrainConfig, model: ModelConfig, names: dict[str, str], step: int) -> dict:
    """What a checkpoint says of its run besides the state."""
    return dict(
        config=dataclasses.asdict(cfg),
        model=dataclasses.asdict(model),
        ops=names,
        loader=dict(position=step * cfg.total_batch_size // cfg.sequence_length),
        versions=dict(jax=jax.__version__, jaxlib=jaxlib.__version__),
    )


def print_banner(cfg: TrainConfig, model: ModelConfig, names: dict[str, str], mesh) -> None:
    """Everything that is in force, before the first step."""
    platform = jax.default_backend()
    A = cfg.total_batch_size // (cfg.batch_size * cfg.sequence_length * mesh.size)
    print(
        f"model    {cfg.model}: {model.num_parameters:,} parameters, L {model.L}, "
        f"NH {model.NH}, C {model.C}\n"
        f"device   {mesh.size} x {jax.devices()[0].device_kind} ({platform}), jax "
        f"{jax.__version__}; {ffi.status(platform)}\n"
        f"ops      {', '.join(f'{op} {name}' for op, name in names.items())}\n"
        f"step     {cfg.total_batch_size:,} tokens ({mesh.size} devices x {A} micro-batches x "
        f"{cfg.batch_size} x {cfg.sequence_length}), {cfg.dtype}, recompute {cfg.recompute}\n"
        f"schedule {cfg.max_steps} steps, {cfg.lr_schedule} from {cfg.learning_rate} to "
        f"{cfg.learning_rate * cfg.final_lr_fraction:.3g} after {cfg.warmup_steps} of warm-up"
    )


def report_files(run: RunDir, checkpoints: Checkpointer) -> None:
    """Draw the picture; say where everything is and what can be done with it."""
    metrics = read_metrics(run.metrics)
    plot_losses(metrics, run.picture)
    val = [m["val_loss"] for m in metrics if "val_loss" in m]
    if val:
        print(f"validation loss {val[-1]:.4f}")
    steps = checkpoints.steps()
    if steps:
        print(f"checkpoint {checkpoints.path(steps[-1])}")
    print(f"log        {run.main_log} and {run.metrics}\npicture    {run.picture}")
    if steps:
        print(
            f"sample     {Path(sys.executable).name} -m llmc_jax.generate "
            f"--run={shlex.quote(str(run.root))} --prompt='def '"
        )


if __name__ == "__main__":
    program.run(main, TrainConfig)
