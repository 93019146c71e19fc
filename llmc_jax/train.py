"""Train a GPT-2: python -m llmc_jax.train --flagfile=configs/quickstart.flags."""

import dataclasses
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial

import jax
import numpy as np

from llmc_jax import compilation_cache, ffi, ops, program
from llmc_jax.banner import print_banner, report_files
from llmc_jax.batches import micro_batch_rows, train_batches, validate
from llmc_jax.config import RunStopped, TrainConfig
from llmc_jax.data.tokenizer import EOT, tokenizer
from llmc_jax.generation.sampler import make_sampler
from llmc_jax.interop.source import open_model
from llmc_jax.models import gpt2
from llmc_jax.run_setup import (
    open_data,
    open_hellaswag,
    refuse_mapping,
    resolve,
    run_record,
    what_must_agree,
)
from llmc_jax.training import memory, parallel, processes, shards
from llmc_jax.training.checkpoint import Checkpointer
from llmc_jax.training.initial_state import make_state, state_like
from llmc_jax.training.lock import locked
from llmc_jax.training.logger import Logger
from llmc_jax.training.profile import Profile
from llmc_jax.training.progress import Progress
from llmc_jax.training.report import Report
from llmc_jax.training.resume import Start, find_start, with_schedule
from llmc_jax.training.run_dir import open_run_dir
from llmc_jax.training.saver import Saver
from llmc_jax.training.startup import Startup
from llmc_jax.training.step import TrainState, eval_step, gradient_memory, init_state, train_step
from llmc_jax.training.stop import Stop
from llmc_jax.training.trackers import open_trackers, require_trackers


def main(cfg: TrainConfig) -> None:
    """Check everything the user gave, then train, then say where the results are."""
    startup = Startup()
    require_trackers(cfg)
    parallel.select_devices(cfg.devices)
    refuse_mapping(cfg)
    processes.start(cfg)
    with processes.all_or_none():
        model, weights = processes.in_turn(partial(open_model, cfg.model))
        ffi.select_isa(cfg.cpu_isa)
        cache = compilation_cache.enable(cfg.compilation_cache, names=bool(cfg.profile_steps))
        mesh = parallel.make_mesh()
        chosen, names = ops.select(cfg.ops, jax.default_backend(), model.C // model.NH)
        data = open_data(cfg, model, mesh.size)
        cfg = resolve(cfg, *data, mesh.size)
        hellaswag = open_hellaswag(cfg, model, chosen, mesh)
    record = run_record(cfg, model, names, data[0], mesh.size)
    processes.refuse_differences(what_must_agree(cfg, record, data))
    with ExitStack() as stack:
        run = checkpoints = None
        start = Start(0, loop_done=False)
        if cfg.output_dir:
            run = processes.from_first(partial(open_run_dir, cfg.output_dir, resume=cfg.resume))
            with processes.all_or_none():
                if processes.first() and (remark := stack.enter_context(locked(run.root))):
                    print(remark)
            keep = dict(keep=cfg.keep_checkpoints, major_every=cfg.major_checkpoint_every)
            # Closing the checkpoints, whatever happens, waits for the one being written.
            checkpoints = stack.enter_context(
                Checkpointer(run.checkpoints, writes=processes.first(), **keep)
            )
            start, schedule_steps = processes.from_first(
                partial(find_start, checkpoints, cfg, record)
            )
            cfg = dataclasses.replace(cfg, schedule_steps=schedule_steps)
        else:
            cfg = with_schedule(cfg, None)
        print_banner(cfg, model, names, mesh, cache)
        startup.part("files")
        settle = checkpoints.wait if checkpoints else lambda: None
        with (
            processes.ending_together(cfg.heartbeat_timeout, settle) as alive,
            memory.enough(chosen, model, cfg, partial(what_is_saved, checkpoints)),
        ):
            ended = train(
                cfg, model, weights, mesh, chosen, names, data, run, checkpoints, start, hellaswag,
                alive, startup,
            )  # fmt: skip
        if run and ended and processes.first():
            report_files(run, checkpoints)


def train(
    cfg,
    model,
    weights,
    mesh,
    chosen,
    names,
    data,
    run,
    checkpoints,
    begin,
    hellaswag,
    alive,
    startup,
) -> bool:
    """The loop from the step `begin` says, in llm.c's order: validate, sample, save, step.

    alive: of processes.ending_together, to be called at every step. Returns False where a signal
    ended it before --max_steps. Raises RunStopped where numbers stay bad or the last checkpoint
    cannot be written.
    """
    began = time.perf_counter()
    train_data, val_data = data
    start, stage = begin.step, shards.stage_in_force(cfg, mesh.size)
    shapes = gpt2.shapes(model)
    if checkpoints:
        like = jax.eval_shape(init_state, shapes)
        checkpoints.reserve(like, touch=cfg.saves_checkpoints)
    step_options = dict(ops=chosen, model=model, cfg=cfg)
    with ThreadPoolExecutor(1) as compiler:  # XLA compiles while the state is made
        update = partial(train_step, **step_options)
        update = compiler.submit(compile_update, update, *state_like(model, cfg, mesh), cfg, mesh)
        state = make_state(model, weights, cfg, checkpoints, start, mesh)
        gradients = parallel.replicate(gradient_memory(shapes, model, cfg), mesh)
        startup.part("state")
        update = update.result()
    ffi.trim_memory()
    startup.part("rest of compilation")
    evaluate = parallel.map_eval_step(partial(eval_step, **step_options), mesh, stage=stage)
    sample = make_sampler(chosen, model, cfg.dtype)
    record = run_record(cfg, model, names, train_data, mesh.size)
    of_first = run if processes.first() else None
    trackers = open_trackers(cfg, of_first, record, start)
    logger, progress = Logger(of_first, start, trackers), Progress(start, cfg.max_steps)
    report = Report(logger, progress, cfg.total_batch_size)
    saver = Saver(checkpoints, cfg, record, start, progress.message)
    agree = processes.Agreement(parallel.map_greatest(mesh))

    def due(every: int, step: int) -> bool:
        """Whether what is done every so many steps and at the end is due at `step`."""
        done_before = step == start and begin.loop_done
        return every > 0 and (step % every == 0 or step == cfg.max_steps) and not done_before

    with (
        Stop() as stop,
        closing(train_batches(train_data, cfg, mesh, start)) as batches,
        Profile(run, cfg, update, start) as profile,
        logger,
    ):
        for step in range(start, max(start, cfg.max_steps) + 1):
            alive(step)
            signal, by_clock = agree(stop.requested, saver.due_by_clock(step))
            stopping = bool(signal) and step < cfg.max_steps
            validate_now = due(cfg.val_every, step)
            sample_now = due(cfg.sample_every, step) and step > 0
            save_now = saver.due(step, by_clock)
            last = step >= cfg.max_steps
            pause = validate_now or sample_now or save_now or stopping or last
            pause |= profile.turns_at(step)
            if pause:
                report.catch_up()
            if where := profile.stop(step):
                progress.message(where)
            refuse_bad_numbers(report, cfg, checkpoints)
            if stopping:
                break
            if validate_now:
                loss = validate(evaluate, state, val_data, cfg, mesh)
                logger.val(step, loss, cfg.total_batch_size)
                progress.message(f"step {step:4d}/{cfg.max_steps} | validation loss {loss:.6f}")
            if validate_now and hellaswag and step > 0:
                right = hellaswag(parallel.whole_params(state.params, shapes))
                logger.hellaswag(step, right.acc, right.acc_norm, cfg.total_batch_size)
                progress.message(f"step {step:4d}/{cfg.max_steps} | HellaSwag {right.acc_norm:.4f}")
            if sample_now:
                params = parallel.own_copy(parallel.whole_params(state.params, shapes))
                if processes.first():
                    tokens = list(sample(params, [EOT], cfg.sample_tokens))
                    text = tokenizer().decode([t for t in tokens if t != EOT])
                    progress.message(f"sample at step {step}:\n---\n{text}\n---")
                del params
            saver.report_failure()
            if save_now:
                saver.save(state, step, report.bad_in_a_row)
            if pause:
                report.restart_clock()
            if last:
                break
            if step == start:
                startup.part("logs and validation")
            batch, waited = train_batch(batches)
            profile.start(step)
            with profile.step(step):
                state, gradients, metrics = update(state, gradients, *batch)
            report.dispatched(step, metrics, waited)
            if step == start:
                report.catch_up()
                startup.part("first step")
                progress.message(str(startup))
        progress.close()
        if stopping:
            outcome = saver.stop(state, step, report.bad_in_a_row)
            print(f"stopped by {Stop.name(signal)} after step {step}/{cfg.max_steps}: {outcome}")
            return False
        saver.finish()
    if report.skipped:
        print(f"{report.skipped} steps were skipped: metrics.jsonl says which")
    if start >= cfg.max_steps:
        print(f"already trained to step {start}; nothing to do")
    else:
        print(f"trained {cfg.max_steps - start} steps in {time.perf_counter() - began:.0f} s")
    return True


def what_is_saved(checkpoints: Checkpointer | None) -> str:
    """What is left of a run that cannot go on, as the end of a sentence."""
    if checkpoints:
        checkpoints.wait()
    steps = checkpoints.steps() if checkpoints else []
    return f"the newest checkpoint is of step {steps[-1]}" if steps else "nothing is saved"


def refuse_bad_numbers(report: Report, cfg: TrainConfig, checkpoints: Checkpointer | None) -> None:
    """Raises RunStopped after --max_bad_steps steps in a row that were not finite."""
    if not 0 < cfg.max_bad_steps <= report.bad_in_a_row:
        return
    if checkpoints:
        checkpoints.wait()
    steps = checkpoints.steps() if checkpoints else []
    saved = f"the newest checkpoint, of step {steps[-1]}, is" if steps else "there is no checkpoint"
    raise RunStopped(
        f"the loss or the gradient norm was not finite in {report.bad_in_a_row} steps in a row "
        f"(--max_bad_steps={cfg.max_bad_steps}); {saved}{' from before them' if steps else ''}: "
        f"look at the data, or start with a lower --learning_rate."
    )


def compile_update(step, state: TrainState, gradients, cfg: TrainConfig, mesh):
    """The training step, mapped and compiled, with a line on time and memory."""
    began = time.perf_counter()
    rows = micro_batch_rows(cfg, mesh)
    zeros = np.zeros((*rows.shape, cfg.sequence_length), np.int32)
    batch = parallel.join((zeros, zeros), mesh, parallel.MICRO_BATCHES, mapper=cfg.mapper)
    stage = shards.stage_in_force(cfg, mesh.size)
    mapped = parallel.map_train_step(step, mesh, stage=stage, mapper=cfg.mapper)
    compiled = mapped.lower(state, gradients, *batch).compile(parallel.compile_options(mesh))
    gibibytes = parallel.planned_bytes(compiled) / 2**30
    print(
        f"compiled the step in {time.perf_counter() - began:.1f} s; it takes {gibibytes:.2f} GiB"
        f"{' on each device' if mesh.size > 1 else ''}",
        flush=True,
    )
    return compiled


def train_batch(batches: Iterator) -> tuple[tuple, float]:
    """The batch of the next step, and how many seconds were spent waiting for it."""
    began = time.perf_counter()
    batch = next(batches)
    return batch, time.perf_counter() - began


if __name__ == "__main__":
    program.run(main, TrainConfig)
