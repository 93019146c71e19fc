"""Train a GPT-2: python -m llmc_jax.train --flagfile=configs/quickstart.flags."""

import dataclasses
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from importlib import metadata
from pathlib import Path

import jax
import numpy as np

from llmc_jax import compilation_cache, ffi, machine, ops, program
from llmc_jax.config import (
    BadInput,
    ModelConfig,
    RunStopped,
    TrainConfig,
    canonical_model,
    digest,
)
from llmc_jax.data.loader import TokenLoader
from llmc_jax.data.prefetch import prefetch
from llmc_jax.data.tokenizer import EOT, tokenizer
from llmc_jax.evaluation.multiple_choice import Accuracy, accuracy, answer, fit_questions
from llmc_jax.evaluation.questions import read_questions
from llmc_jax.evaluation.scorer import IGNORED, make_scorer
from llmc_jax.generation.sampler import make_sampler
from llmc_jax.interop.source import open_model
from llmc_jax.models import gpt2
from llmc_jax.models.gpt2 import Params
from llmc_jax.models.initialize import initialize
from llmc_jax.training import memory, parallel, processes, shards
from llmc_jax.training.checkpoint import Checkpointer
from llmc_jax.training.lock import locked
from llmc_jax.training.logger import Logger
from llmc_jax.training.profile import Profile, profiled_steps
from llmc_jax.training.progress import Progress
from llmc_jax.training.report import Report
from llmc_jax.training.resume import Start, find_start, open_weights, with_schedule
from llmc_jax.training.run_dir import RunDir, open_run_dir
from llmc_jax.training.saver import Saver
from llmc_jax.training.startup import Startup
from llmc_jax.training.step import TrainState, eval_step, gradient_memory, init_state, train_step
from llmc_jax.training.stop import Stop
from llmc_jax.training.trackers import open_trackers, require_trackers
from llmc_jax.view.curves import read_run
from llmc_jax.view.panels import LOSS


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


def refuse_mapping(cfg: TrainConfig) -> None:
    """Raises BadInput where --mapper cannot do what is asked for."""
    if cfg.mapper == "pmap" and cfg.zero_stage:
        raise BadInput(
            f"--mapper=pmap keeps the whole state on every device; with "
            f"--zero_stage={cfg.zero_stage} take --mapper=shard_map."
        )


def what_must_agree(cfg: TrainConfig, record: dict, data) -> dict:
    """What has to be the same in all processes of a run, by the names a user knows."""
    own = ("process_id", "coordinator_address", "coordinator_timeout", "heartbeat_timeout")
    flags = {f"--{name}": v for name, v in dataclasses.asdict(cfg).items() if name not in own}
    contents = {
        f"what --{name} reads": loader and loader.describe()
        for name, loader in zip(("train_data", "val_data"), data, strict=True)
    }
    files = {name: flags[name] for name in ("--train_data", "--val_data")}
    made_with = record["made_with"]
    # Files first: what follows from them, like --max_steps, differs with them.
    return files | contents | flags | {f"the {key}": made_with[key] for key in ("ops", "versions")}


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
        below = max(0, total) // micro_batch * micro_batch
        near = " and ".join(str(n) for n in (below, below + micro_batch) if n)
        rows = total // (cfg.sequence_length * devices)
        smaller = next((B for B in range(min(cfg.batch_size, rows), 0, -1) if rows % B == 0), 0)
        whole_rows = smaller and rows * cfg.sequence_length * devices == total
        raise BadInput(
            f"--total_batch_size={total} is not a multiple of the {micro_batch} tokens of one "
            f"micro-batch (--batch_size {cfg.batch_size} x --sequence_length "
            f"{cfg.sequence_length} x {devices} devices); the nearest that work: {near}"
            f"{f'; or --batch_size={smaller}' if whole_rows else ''}."
        )
    max_steps = cfg.max_steps
    if max_steps == -1:
        max_steps = train.num_sequences * cfg.sequence_length // total
        if max_steps == 0:
            raise BadInput(
                f"--train_data={cfg.train_data} is smaller than one step of {total} tokens; "
                f"lower --total_batch_size or give --max_steps."
            )
    if not cfg.output_dir:
        flags = ("resume", "checkpoint_every", "checkpoint_minutes", "major_checkpoint_every")
        for flag in flags:
            if getattr(cfg, flag):
                raise BadInput(f"--{flag} needs --output_dir, the directory of the run.")
    if not cfg.resume and (cfg.resume_step != -1 or cfg.reschedule):
        flag = "reschedule" if cfg.reschedule else "resume_step"
        raise BadInput(f"--{flag} is for a run that is continued; add --resume.")
    cfg = dataclasses.replace(
        cfg, model=canonical_model(cfg.model), total_batch_size=total, max_steps=max_steps
    )
    profiled_steps(cfg)
    return cfg


def open_hellaswag(
    cfg: TrainConfig, model: ModelConfig, chosen: ops.Ops, mesh
) -> Callable[[Params], Accuracy] | None:
    """A function of the parameters that evaluates --hellaswag; None where there is none."""
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
    return lambda params: accuracy(answer(score, params, questions))


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


def micro_batch_rows(cfg: TrainConfig, mesh) -> np.ndarray:
    """(A, rows): which sequences of a step this process's devices have in each micro-batch."""
    rows = cfg.total_batch_size // cfg.sequence_length
    micro_rows = cfg.batch_size * mesh.size
    own = parallel.own_rows(mesh, micro_rows)
    return np.arange(rows).reshape(-1, micro_rows)[:, own]


def train_batches(loader: TokenLoader, cfg: TrainConfig, mesh, start: int) -> Iterator:
    """Inputs and targets (A, B*D, T) of each step from `start` on, on the devices, made ahead.

    Each process reads its rows only.
    """
    count = cfg.total_batch_size // cfg.sequence_length
    rows = micro_batch_rows(cfg, mesh)

    def make(step: int):
        position = 0 if cfg.overfit_single_batch else step * count
        batch = loader.read(position, count, rows=rows.reshape(-1))
        batch = tuple(x.reshape(*rows.shape, cfg.sequence_length) for x in batch)
        return parallel.join(batch, mesh, parallel.MICRO_BATCHES, mapper=cfg.mapper)

    return prefetch(make, range(start, cfg.max_steps))


def train_batch(batches: Iterator) -> tuple[tuple, float]:
    """The batch of the next step, and how many seconds were spent waiting for it."""
    began = time.perf_counter()
    batch = next(batches)
    return batch, time.perf_counter() - began


def validate(evaluate, state: TrainState, loader: TokenLoader, cfg: TrainConfig, mesh) -> float:
    """Mean loss over the first --val_batches batches of the validation data.

    They are the same sequences on any number of devices: what is missing in the last batch of all
    devices is ignored. (In llm.c's order, they are a batch for each device, as in llm.c.)
    """
    batch_rows = cfg.batch_size * mesh.size
    of_one = batch_rows if cfg.shuffle_order == "llmc" else cfg.batch_size
    wanted = loader.num_sequences if cfg.val_batches == -1 else cfg.val_batches * of_one
    count = min(wanted, loader.num_sequences)
    own = np.arange(batch_rows)[parallel.own_rows(mesh, batch_rows)]

    def make(position: int):
        inputs, targets = loader.read(position, batch_rows, rows=own)
        targets[position + own >= count] = IGNORED
        return parallel.join((inputs, targets), mesh, parallel.ROWS)

    batches = prefetch(make, range(0, count, batch_rows))
    losses = jax.device_get([evaluate(state.params, *batch) for batch in batches])
    return float(np.mean(losses) * np.float32(len(losses) * batch_rows / count))


def run_record(
    cfg: TrainConfig, model: ModelConfig, names: dict[str, str], data: TokenLoader, devices: int
) -> dict:
    """What the checkpoints of a run say of it besides the state; the step's part is Saver's."""
    packages = ("jax", "jaxlib", "numpy", "orbax-checkpoint", "llmc_jax")
    return dict(
        config=dataclasses.asdict(cfg),
        digest=digest(cfg),
        model=dataclasses.asdict(model),
        data=data.describe(),
        devices=devices,
        made_with=dict(
            ops=" ".join(f"{op}={name}" for op, name in names.items()),
            device=f"{devices} x {jax.devices()[0].device_kind}",
            versions=" ".join(f"{name} {metadata.version(name)}" for name in packages),
            revision=machine.commit() or "unknown",
        ),
    )


def print_banner(
    cfg: TrainConfig, model: ModelConfig, names: dict[str, str], mesh, cache: str
) -> None:
    """Everything that is in force, before the first step."""
    platform = jax.default_backend()
    A = cfg.total_batch_size // (cfg.batch_size * cfg.sequence_length * mesh.size)
    print(
        f"model    {cfg.model}: {model.num_parameters:,} parameters, L {model.L}, "
        f"NH {model.NH}, C {model.C}\n"
        f"device   {mesh.size} x {jax.devices()[0].device_kind} ({platform}){shared(cfg, mesh)}, "
        f"jax {jax.__version__}; {ffi.status(platform)}\n"
        f"ops      {', '.join(f'{op} {name}' for op, name in names.items())}\n"
        f"step     {cfg.total_batch_size:,} tokens ({mesh.size} devices x {A} micro-batches x "
        f"{cfg.batch_size} x {cfg.sequence_length}), {cfg.dtype}, recompute {cfg.recompute}\n"
        f"schedule {cfg.schedule_steps} steps, {cfg.lr_schedule} from {cfg.learning_rate} to "
        f"{cfg.learning_rate * cfg.final_lr_fraction:.3g} after {cfg.warmup_steps} of warm-up\n"
        f"cache    {cache}"
    )


def shared(cfg: TrainConfig, mesh) -> str:
    """How the devices make the run together, in words; '' for one."""
    if mesh.size == 1:
        return ""
    several = f" of {jax.process_count()} processes" if processes.several() else ""
    return f"{several}, {cfg.mapper}, ZeRO stage {cfg.zero_stage}"


def report_files(run: RunDir, checkpoints: Checkpointer) -> None:
    """Draw the picture; say where everything is and what can be done with it."""
    # Here, because it imports matplotlib: half a second that the start can do without.
    from llmc_jax.view.picture import save_picture

    if not run.metrics.exists():  # no step was made, none could be logged
        return
    logged = read_run(run.root)
    try:
        save_picture([logged], run.picture, [LOSS])
    except OSError as error:
        raise RunStopped(f"{run.picture} cannot be drawn: {error.strerror}.") from error
    if val := logged.curves.get("val_loss"):
        print(f"validation loss {val.values[-1]:.4f}")
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
