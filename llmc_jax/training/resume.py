"""Which checkpoint a run goes on from, and whether it is the same run."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from llmc_jax.config import BadInput, TrainConfig, changes, not_saved
from llmc_jax.files import set_aside
from llmc_jax.training.checkpoint import Checkpointer
from llmc_jax.training.run_dir import RunDir


class Start(NamedTuple):
    """Where a run begins."""

    step: int
    loop_done: bool  # validating and sampling at that step belong to the run before
    saved: bool = False  # there is a checkpoint of that step: that of an exported model is of 0


def newest_whole(checkpoints: Checkpointer) -> int | None:
    """Step of the newest checkpoint that is what was written; None where there are none at all.

    Raises BadInput where all are damaged.
    """
    problems = []
    for step in reversed(checkpoints.all_steps()):
        problem = checkpoints.problem(step)
        if not problem:
            return step
        problems.append(f"{checkpoints.path(step)}: {problem}")
    if problems:
        raise BadInput(
            f"no checkpoint can be used ({'; '.join(problems)}); start again in another "
            f"--output_dir."
        )
    return None


def find_start(
    checkpoints: Checkpointer, cfg: TrainConfig, record: dict, place_after: Callable
) -> tuple[Start, int]:
    """The start of the run in cfg.output_dir, and its --schedule_steps.

    record: what a checkpoint would say of this run. place_after: steps -> where llm.c would be in
    its order, called only for that. What comes after the step is set aside, and so are the logs
    where there is no checkpoint; what is broken or different and may be is said aloud. Raises
    BadInput where the run is another.
    """
    try:
        checkpoints.remove_unfinished()
        step = newest_whole(checkpoints) if cfg.resume_step == -1 else cfg.resume_step
        if step is None:
            _set_logs_aside(RunDir(Path(cfg.output_dir)))
            return Start(0, False), with_schedule(cfg, None).schedule_steps
        if step not in checkpoints.all_steps():
            raise not_saved("resume_step", step, cfg.output_dir, checkpoints.steps())
        before = checkpoints.restore_run(step)
        cfg = with_schedule(cfg, before["config"])
        refuse_another_run(before, cfg, record)
        if cfg.shuffle_order == "llmc":
            refuse_another_order(before, cfg, record)
            refuse_another_place(before, cfg, step, place_after)
        for line in differences(before, cfg, record):
            print(f"resuming with {line}")
        _set_aside_after(checkpoints, step)
    except OSError as error:
        raise BadInput(
            f"--output_dir={cfg.output_dir} cannot be used: {error.strerror} ({error.filename})."
        ) from error
    return Start(step, before.get("loop_done", True), saved=True), cfg.schedule_steps


def run_before(cfg: TrainConfig) -> dict | None:
    """What the newest complete checkpoint that can say it says of the run that --resume continues;
    None where there is none. That it is whole is for `find_start` to see, which reads all of it."""
    if not (cfg.resume and cfg.output_dir):
        return None
    checkpoints = Checkpointer(RunDir(Path(cfg.output_dir)).checkpoints)
    try:
        said = map(checkpoints.peek_run, reversed(checkpoints.steps()))
        return next((run for run in said if run), None)
    except OSError:  # which find_start names, when it is its turn
        return None


def with_schedule(cfg: TrainConfig, before: dict | None) -> TrainConfig:
    """`cfg` with --schedule_steps filled in: as the run `before` had it, unless told otherwise."""
    if cfg.schedule_steps != -1:
        return cfg
    kept = None if cfg.reschedule else (before or {}).get("schedule_steps")
    return dataclasses.replace(cfg, schedule_steps=cfg.max_steps if kept is None else kept)


def refuse_another_run(before: dict, cfg: TrainConfig, record: dict) -> None:
    """Raises BadInput that names every option that makes `cfg` another run than `before`."""
    saved, data = before["config"], before.get("data", {})  # export's say nothing of data
    if cfg.reschedule:
        saved = saved | dict(schedule_steps=cfg.schedule_steps)
    different = changes(saved, cfg)
    if "sets" not in data:  # of a version that did not say in what shares they are mixed
        different += [c for c in changes(saved, cfg, may_change=True) if "--train_data was" in c]
    if different:
        raise BadInput(
            f"--resume: the run in {cfg.output_dir} was started with other options "
            f"({'; '.join(different)}); give the old ones, or another --output_dir"
            f"{_remedies(different, saved, cfg, record)}."
        )
    model = before["model"]
    if model != record["model"]:
        raise BadInput(
            f"--resume: --model={cfg.model} is not what the run in {cfg.output_dir} was started "
            f"with ({_sizes(model)}; now {_sizes(record['model'])}); name one of the old sizes."
        )
    if not _same(data, record["data"]):
        raise BadInput(
            f"--resume: --train_data={cfg.train_data} is not what the run in {cfg.output_dir} was "
            f"started with ({_words(data)}; now {_words(record['data'])}); give it the old files."
        )


def refuse_another_order(before: dict, cfg: TrainConfig, record: dict) -> None:
    """Raises BadInput where llm.c's order would be another, which hangs on B and the devices."""
    now = cfg.batch_size, record["devices"]
    # What export made says the devices where it was llm.c's, and no batch size.
    was = before["config"].get("batch_size", now[0]), before.get("devices", now[1])
    if was != now:
        raise BadInput(
            f"--resume: with --shuffle_order=llmc the batches hang on --batch_size and devices, "
            f"which were {was[0]} and {was[1]} and are now {now[0]} and {now[1]}; take the old "
            f"ones."
        )


def refuse_another_place(
    before: dict, cfg: TrainConfig, step: int, place_after: Callable[[int], tuple[int, int]]
) -> None:
    """Raises BadInput where llm.c's own run, which export made this of, would read on elsewhere."""
    if "llmc" not in before or cfg.overfit_single_batch:
        return
    was = before["llmc"]
    shard, sample = place_after(step)
    if was != dict(shard=shard, sample=sample, shuffle=cfg.shuffle):
        raise BadInput(
            f"--resume: llm.c was at sample {was['sample']} of shard {was['shard']} after step "
            f"{step} (--shuffle={was['shuffle']}), and with these flags it would be at sample "
            f"{sample} of shard {shard} (--shuffle={cfg.shuffle}); give its --train_data, "
            f"--batch_size, --sequence_length, --total_batch_size and --shuffle, or go on with "
            f"--shuffle_order=counter."
        )


def differences(before: dict, cfg: TrainConfig, record: dict) -> list[str]:
    """What differs from the run before and may: options, versions, devices, kernels."""
    lines = changes(before["config"], cfg, may_change=True)
    if not _same(before.get("val_data") or {}, record.get("val_data") or {}):
        lines.append("other tokens to validate on: losses of validations are of them from here on")
    if cfg.reschedule:
        lines += [c for c in changes(before["config"], cfg) if c.startswith("--schedule_steps")]
    for key, value in record["made_with"].items():
        old = before.get("made_with", {}).get(key, value)
        if old != value:
            lines.append(f"another {key}: it was {old} and is now {value}")
    return lines


def open_weights(path: str) -> tuple[Checkpointer, int]:
    """The checkpoint that --init_from names: of a run's directory the newest that is whole."""
    folder = Path(path)
    if RunDir(folder).checkpoints.is_dir():
        checkpoints = Checkpointer(RunDir(folder).checkpoints)
        step = newest_whole(checkpoints)
    else:
        checkpoints = Checkpointer(folder.parent)
        step = next((s for s in checkpoints.all_steps() if checkpoints.path(s) == folder), None)
    if step is None:
        raise BadInput(
            f"--init_from={path} is neither the directory of a run with a checkpoint nor one of "
            f"its checkpoints; name one, or leave it out."
        )
    return checkpoints, step


def _remedies(different: list[str], saved: dict, cfg: TrainConfig, record: dict) -> str:
    """What helps where an option differs that may not have been given; '' where there is none."""
    flags = {change.split()[0] for change in different}
    remedies = ""
    if "--schedule_steps" in flags:
        remedies = " (--reschedule takes a new --schedule_steps)"
    micro_batch = cfg.batch_size * cfg.sequence_length * record["devices"]
    if "--total_batch_size" in flags and cfg.total_batch_size == micro_batch:
        remedies += (
            f" (without --total_batch_size it is one micro-batch on each device; "
            f"--total_batch_size={saved['total_batch_size']} keeps it, with a smaller --batch_size "
            f"if need be)"
        )
    return remedies


def _set_aside_after(checkpoints: Checkpointer, step: int) -> None:
    """Rename what follows `step`, so that the run can save there, and say so."""
    for later in checkpoints.all_steps():
        if later > step:
            problem = checkpoints.problem(later)
            place = checkpoints.set_aside(later, "broken" if problem else "later")
            if problem:
                print(
                    f"WARNING: the checkpoint of step {later} cannot be used: {problem}; it is now "
                    f"{place}, and the run goes back to step {step}"
                )
            else:
                print(f"the checkpoint of step {later} is now {place}")


def _set_logs_aside(run: RunDir) -> None:
    """Rename the logs of a run of which nothing else is left, and say so: they may be of another
    run, which nobody can compare, and are all that it has left."""
    for log in run.logs():
        print(
            f"{run.root} has no checkpoint, so the run begins anew; {log.name} is now "
            f"{set_aside(log, 'earlier')}"
        )


def _sizes(model: dict) -> str:
    return " ".join(f"{name} {size}" for name, size in model.items())


def _same(before: dict, now: dict) -> bool:
    """Whether two descriptions of data are of the same, as far as both say."""
    return all(now[key] == value for key, value in before.items() if key in now)


def _words(data: dict) -> str:
    sums = " and ".join(str(data[name]) for name in ("checksum", "sampled") if name in data)
    weights = [weight for _, weight in data.get("sets", [])]
    mix = f", mixed {' : '.join(weights)}" if len(weights) > 1 else ""
    return f"{data['shards']} shards, {data['sequences']} sequences{mix}, checksums {sums}"
