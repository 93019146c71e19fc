"""Train a GPT-2: python -m llmc_jax.train --flagfile=configs/quickstart.flags."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from signal import Signals
from typing import NamedTuple

from llmc_jax import ffi, program
from llmc_jax.banner import print_banner, report_files
from llmc_jax.batches import train_batches
from llmc_jax.config import BadInput, RunStopped, TrainConfig
from llmc_jax.lock import locked
from llmc_jax.milestones import Milestones
from llmc_jax.run_setup import Setup, meet, place_after, set_up
from llmc_jax.training import memory, parallel, placement, processes
from llmc_jax.training.checkpoint import Checkpointer
from llmc_jax.training.initial_state import make_state, maker_of_moments, state_like
from llmc_jax.training.logger import Logger
from llmc_jax.training.profile import Profile
from llmc_jax.training.progress import Progress
from llmc_jax.training.report import Report
from llmc_jax.training.resume import Start, find_start, with_schedule
from llmc_jax.training.rooms import maker_of_rooms, placed_rooms_like
from llmc_jax.training.run_dir import RunDir, open_run_dir
from llmc_jax.training.saver import Saver
from llmc_jax.training.startup import Startup
from llmc_jax.training.step import TrainState, state_shapes
from llmc_jax.training.stop import Stop
from llmc_jax.training.trackers import open_trackers

# Of a signal while all is made ready.
STARTING = "before the first step: nothing of this start is saved; start it again"


class Place(NamedTuple):
    """Where a run writes, None where it does not, and where it begins."""

    run: RunDir | None
    checkpoints: Checkpointer | None
    start: Start


def main(cfg: TrainConfig) -> None:
    """Check everything the user gave, then train, then say where the results are."""
    startup = Startup()
    meet(cfg)
    together = processes.ending_together(cfg.heartbeat_timeout, cfg.to_go_on)
    with together as alive, ExitStack() as stack:
        setup, place = enter_place(set_up(cfg), stack)
        print_banner(setup)
        startup.part("files")

        def does_not_fit() -> RunStopped:
            saved = what_is_saved(place.checkpoints)
            return memory.out_of_memory(setup.ops, setup.model, setup.cfg, saved)

        with memory.enough(does_not_fit):
            ended = train(setup, place, alive, startup)
        if place.run and ended and processes.first():
            report_files(place.run, place.checkpoints, setup.cfg.max_steps)


def enter_place(setup: Setup, stack: ExitStack) -> tuple[Setup, Place]:
    """The run's directory, held until `stack` is left, with what is in it to go on from; and the
    setup with the schedule of the run's first start."""
    cfg = setup.cfg
    if not cfg.output_dir:
        return setup._replace(cfg=with_schedule(cfg, None)), Place(None, None, Start(0, False))
    run = processes.from_first(partial(open_run_dir, cfg.output_dir, resume=cfg.resume))
    with processes.all_or_none():
        if processes.first() and (remark := stack.enter_context(locked(run.root))):
            print(remark)
    keep = dict(keep=cfg.keep_checkpoints, major_every=cfg.major_checkpoint_every)
    # Closing the checkpoints, whatever happens, waits for the one being written.
    checkpoints = stack.enter_context(
        Checkpointer(run.checkpoints, writes=processes.first(), **keep)
    )
    find = partial(find_start, checkpoints, cfg, setup.record, partial(place_after, setup))
    start, schedule_steps = processes.from_first(find)
    cfg = dataclasses.replace(cfg, schedule_steps=schedule_steps)
    return setup._replace(cfg=cfg), Place(run, checkpoints, start)


def train(setup: Setup, place: Place, alive: Callable[[int], None], startup: Startup) -> bool:
    """The loop from the step that `place` says, in llm.c's order: validate, sample, save, step.

    alive: of processes.ending_together, to be called at every step. Returns False where a signal
    ended it before --max_steps. Raises RunStopped where numbers stay bad or the last checkpoint
    cannot be written.
    """
    began = time.perf_counter()
    cfg, mesh = setup.cfg, setup.mesh
    start, loop_done, _ = place.start
    update, state, make_rooms = first_state(setup, place, startup)
    rooms = None
    of_first = place.run if processes.first() else None
    trackers = open_trackers(cfg, of_first, start, loop_done=loop_done)
    logger = Logger(of_first, start, trackers, loop_done=loop_done)
    progress = Progress(start, cfg.max_steps)
    report = Report(logger, progress, cfg.total_batch_size)
    saver = Saver(place.checkpoints, cfg, setup.record, start, progress.message)
    milestones = Milestones(setup, place.start, logger, progress.message)
    greatest = parallel.map_greatest(mesh)
    agree, agree_to_stop = processes.Agreement(greatest), processes.Agreement(greatest)
    all_done = False
    with (
        Stop(lambda: saver.newest) as stop,
        closing(train_batches(setup.train_data, cfg, mesh, start)) as batches,
        Profile(of_first, cfg, update, start) as profile,
        logger,
    ):

        def asked() -> int:
            return agree_to_stop(stop.requested)[0]

        for step in range(start, max(start, cfg.max_steps) + 1):
            alive(step)
            signal, by_clock = agree(stop.requested, saver.due_by_clock(step))
            last = step >= cfg.max_steps
            signal = 0 if last else signal  # the run ends by itself
            save_now = saver.due(step, by_clock)
            pause = milestones.due(step) or save_now or signal or last or profile.turns_at(step)
            if pause:
                report.catch_up()
            if where := profile.stop(step):
                progress.message(where)
            refuse_bad_numbers(report, cfg, place.checkpoints)
            if signal:
                break
            if milestones.due(step):
                rooms = None  # their memory is for what is done now
            if signal := milestones.reached(step, state, asked, lambda: stop.requested):
                break
            saver.report_failure()
            if save_now:
                saver.save(state, step, report.bad_in_a_row)
            if pause:
                report.restart_clock()
            if last:
                break
            # They may have taken long. (At the start there would be nothing to save.)
            if milestones.due(step) and step > start and (signal := asked()):
                all_done = True
                break
            if step == start:
                startup.part("logs and validation")
            try:
                batch, waited = train_batch(batches)
            except BadInput:
                keep_what_was_trained(state, step, report, saver, cfg)
                raise
            profile.start(step)
            rooms = make_rooms() if rooms is None else rooms
            with profile.step(step):
                state, rooms, metrics = update(state, rooms, *batch)
            report.dispatched(step, metrics, waited)
            if step == start:
                report.catch_up()
                startup.part("first step")
                progress.message(str(startup))
        progress.close()
        if signal:
            refuse_bad_numbers(report, cfg, place.checkpoints, last=True)
            outcome = saver.stop(state, step, loop_done=all_done)
            print(f"stopped by {Signals(signal).name} after step {step}/{cfg.max_steps}: {outcome}")
            return False
        saver.finish()
    if report.skipped:
        print(f"{report.skipped} steps were skipped: metrics.jsonl says which")
    refuse_bad_numbers(report, cfg, place.checkpoints, last=True)
    if start >= cfg.max_steps:
        done = f"already trained to step {start}" if start else "--max_steps=0 asks for no step"
        print(f"{done}; nothing to do")
    else:
        print(f"trained {cfg.max_steps - start} steps in {time.perf_counter() - began:.0f} s")
    return True


def first_state(setup: Setup, place: Place, startup: Startup):
    """The compiled step, the state that it begins with, and a function that makes its rooms.

    Python traces the step, then draws parameters; beside it memory is touched for the first time,
    and XLA compiles.
    """
    cfg, model, mesh = setup.cfg, setup.model, setup.mesh
    start = place.start.step if place.start.saved else None
    saved = partial(what_is_saved, place.checkpoints)
    like, rooms = state_like(model, cfg, mesh), placed_rooms_like(setup.ops, model, cfg, mesh)
    memory.refuse_too_large(memory.size_on_each(like), setup.ops, model, cfg, saved)
    if place.checkpoints:
        place.checkpoints.reserve(state_shapes(model), touch=cfg.saves_checkpoints)
    with ThreadPoolExecutor(1) as beside:
        zeros = beside.submit(maker_of_moments(like)) if start is None else None
        lowered = lower_update(setup, like, rooms)
        update = beside.submit(compile_update, lowered, setup, saved)
        make_rooms = beside.submit(maker_of_rooms, rooms, mesh)
        state = make_state(model, setup.weights, cfg, place.checkpoints, start, mesh, zeros)
        startup.part("state")
        update, make_rooms = update.result(), make_rooms.result()
    ffi.trim_memory()
    startup.part("rest of compilation")
    return update, state, make_rooms


def what_is_saved(checkpoints: Checkpointer | None) -> str:
    """What is left of a run that cannot go on, as the end of a sentence."""
    step = checkpoints and checkpoints.newest()
    return "nothing is saved" if step is None else f"the newest checkpoint is of step {step}"


def keep_what_was_trained(
    state: TrainState, step: int, report: Report, saver: Saver, cfg: TrainConfig
) -> None:
    """Log and save up to update `step`, for which there is no batch. (Several processes save
    together, and the others have one.)"""
    report.catch_up()
    if processes.several() or report.bad_in_a_row:
        return
    try:
        # A resume would come to the same batch; of data that have been mended it is refused.
        use = f"--init_from={cfg.output_dir} starts a new run from its weights"
        print(saver.stop(state, step, use=f"with the data mended, {use}"))
    except RunStopped as error:
        print(error)


def refuse_bad_numbers(
    report: Report, cfg: TrainConfig, checkpoints: Checkpointer | None, *, last: bool = False
) -> None:
    """Raises RunStopped after --max_bad_steps steps in a row that were not finite, or where the
    last steps of the run were not."""
    bad = report.bad_in_a_row
    if not (last and bad) and not 0 < cfg.max_bad_steps <= bad:
        return
    step = checkpoints and checkpoints.newest()
    saved = "there is no checkpoint"
    if step is not None:
        saved = f"the newest checkpoint, of step {step}, is from before them"
    where = f"{bad} steps in a row (--max_bad_steps={cfg.max_bad_steps})"
    if last:
        where = f"the last {bad} steps" if bad > 1 else "the last step"
    raise RunStopped(
        f"the loss or the gradient norm was not finite in {where}; "
        f"{saved}: look at the data, or start with a lower --learning_rate."
    )


def lower_update(setup: Setup, state: TrainState, rooms):
    """The training step, mapped and lowered, for a state and rooms of these shapes."""
    cfg, mesh = setup.cfg, setup.mesh
    mapped = parallel.map_train_step(setup.ops, setup.model, cfg, mesh)
    rows, T = cfg.batch_size * mesh.size, cfg.sequence_length
    shape = (cfg.total_batch_size // (rows * T), rows, T)
    batch = placement.micro_batches_like(shape, mesh, mapper=cfg.mapper)
    return mapped.lower(state, rooms, batch, batch)


def compile_update(lowered, setup: Setup, saved: Callable[[], str]):
    """The training step compiled, with a line on time and memory. Raises RunStopped, which says
    what is `saved`, where the memory it takes is more than there is."""
    began = time.perf_counter()
    compiled = lowered.compile(parallel.compile_options(setup.mesh))
    planned = memory.planned_bytes(compiled)
    print(
        f"compiled the step in {time.perf_counter() - began:.1f} s; it takes "
        f"{planned / 2**30:.2f} GiB{' on each device' if setup.mesh.size > 1 else ''}",
        flush=True,
    )
    memory.refuse_too_large(planned, setup.ops, setup.model, setup.cfg, saved)
    return compiled


def train_batch(batches: Iterator) -> tuple[tuple, float]:
    """The batch of the next step, and how many seconds were spent waiting for it."""
    began = time.perf_counter()
    batch = next(batches)
    return batch, time.perf_counter() - began


if __name__ == "__main__":
    program.run(main, TrainConfig, goes_on=True, starting=STARTING)
