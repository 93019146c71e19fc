"""How good a model is: python -m llmc_jax.evaluate --run=runs/quickstart.

Loss, perplexity and bits per byte of text; HellaSwag and MMLU as llm.c's scripts define them.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax

from llmc_jax import ffi, program
from llmc_jax.config import BadInput, RunStopped, option
from llmc_jax.evaluation import multiple_choice, text
from llmc_jax.evaluation.fetch import fetch_hellaswag, fetch_mmlu
from llmc_jax.evaluation.questions import read_questions
from llmc_jax.evaluation.scorer import make_scorer
from llmc_jax.files import new_file, refuse_unwritable
from llmc_jax.trained import Trained, TrainedConfig, open_by_flags
from llmc_jax.training import memory

FETCH = dict(hellaswag=fetch_hellaswag, mmlu=fetch_mmlu)
TASKS = ("loss", *FETCH)


@dataclass(frozen=True)
class EvaluateConfig(TrainedConfig):
    """Which model, on what, and where the numbers go."""

    tasks: str = option(
        "",
        "some of loss, hellaswag, mmlu, with commas between; empty: loss, and what a file is "
        "given for",
    )
    val_data: str = option(
        "",
        "glob of the token shards for the loss; empty: the --val_data of the run. Weights change "
        "nothing: every text counts as it is",
        path=True,
    )
    val_batches: int = option(
        -1,
        "only the first N times --batch_size sequences of --val_data, as training's, which passes "
        "over what is left at a shard's end; -1: all of it",
        minimum=-1,
    )
    hellaswag: str = option(
        "",
        "HellaSwag's questions: PATH.jsonl, or llm.c's PATH.bin; empty: they are downloaded",
        path=True,
    )
    mmlu: str = option(
        "", "glob of MMLU's questions, CSV files; empty: they are downloaded", path=True
    )
    data_dir: str = option("data/evaluation", "directory for what is downloaded", path=True)
    limit: int = option(0, "only the first N questions of each task; 0: all", minimum=0)
    batch_size: int = option(
        8,
        "sequences on each device at a time; no result depends on it, but --val_batches counts "
        "in it",
        minimum=1,
    )
    output: str = option("", "file for all numbers, one JSON object", path=True)
    details: bool = option(False, "with --output: also the losses and choices of each question")
    overwrite: bool = option(False, "replace --output if it exists")


def main(cfg: EvaluateConfig) -> None:
    """Read all that is asked for, then evaluate it; print and write each task's numbers."""
    check(cfg)
    trained, mesh, chosen, T, dtype = open_by_flags(cfg)
    model = trained.model
    rows = min(cfg.batch_size, text.ROWS_AT_A_TIME)  # more are never there at once
    score = make_scorer(chosen, model, dtype, mesh, batch_size=rows, progress=True)
    tasks = {name: open_task(name, cfg, trained, T) for name in task_names(cfg)}
    source = cfg.run or cfg.model
    print(
        f"model    {source}: {model.num_parameters:,} parameters, {dtype}, T {T}\n"
        f"device   {mesh.size} x {jax.devices()[0].device_kind}; "
        f"{ffi.status(jax.default_backend())}",
        flush=True,
    )
    what = dict(model=source, step=trained.step, dtype=dtype, sequence_length=T)
    results = {}
    for name, evaluate in tasks.items():
        with memory.enough(partial(too_large, cfg.batch_size)):
            results[name] = evaluate(score)
        print("\n".join(lines(name, results[name])), flush=True)
        if cfg.output:  # now, and with more after the next task: which may be hours, and fail
            with new_file(cfg.output, overwrite=cfg.overwrite or len(results) > 1) as file:
                file.write(json.dumps(what | dict(tasks=results)).encode() + b"\n")


def too_large(batch_size: int) -> RunStopped:
    """What is said where memory does not do for a batch."""
    return RunStopped(
        f"memory is not enough for --batch_size={batch_size}; lower it, or --sequence_length."
    )


def check(cfg: EvaluateConfig) -> None:
    """Raises BadInput for flags that do not go together, before anything is read."""
    names = task_names(cfg)
    for name in names:
        if name not in TASKS:
            raise BadInput(f"--tasks has '{name}'; the tasks are {', '.join(TASKS)}.")
    for name, flag in dict(loss="val_data", hellaswag="hellaswag", mmlu="mmlu").items():
        if getattr(cfg, flag) and name not in names:
            raise BadInput(f"--{flag} is given, but --tasks={cfg.tasks} has no {name}; add it.")
    if cfg.val_batches == 0:
        raise BadInput("--val_batches=0 is no batch; leave the loss out of --tasks.")
    if cfg.details and not cfg.output:
        raise BadInput("--details needs --output, the file that they are written to.")
    if cfg.output:
        refuse_unwritable(cfg.output, "--output=", overwrite=cfg.overwrite)


def task_names(cfg: EvaluateConfig) -> list[str]:
    """What is to be evaluated."""
    if cfg.tasks:
        return [name.strip() for name in cfg.tasks.split(",")]
    return ["loss", *(name for name in FETCH if getattr(cfg, name))]


def open_task(name: str, cfg: EvaluateConfig, trained: Trained, T: int) -> Callable:
    """A function of a scorer that gives the task's numbers; its files are read and checked."""
    if name == "loss":
        pattern = cfg.val_data or trained.options.get("val_data", "")
        sequences = None if cfg.val_batches == -1 else cfg.val_batches * cfg.batch_size
        rows = text.read_rows("val_data", pattern, model=trained.model, T=T, sequences=sequences)
        return partial(evaluate_text, trained, rows)
    pattern = getattr(cfg, name) or FETCH[name](Path(cfg.data_dir))
    questions = read_questions(name, pattern)[: cfg.limit or None]
    fitting = multiple_choice.fit_questions(f"--{name}={pattern}", questions, trained.model, T)
    return partial(evaluate_questions, trained, *fitting, cfg.details)


def evaluate_text(trained: Trained, rows, score) -> dict:
    """The numbers of the task loss."""
    lengths = text.byte_lengths(trained.model)
    return text.total_loss(score, trained.params, rows, lengths)._asdict()


def evaluate_questions(trained: Trained, questions, cut: int, details: bool, score) -> dict:
    """The numbers of a task of questions."""
    answers = multiple_choice.answer(score, trained.params, questions)
    result = multiple_choice.accuracy(answers)._asdict() | dict(contexts_cut=cut)
    if details:
        result["details"] = [
            answer._asdict() | dict(choice=answer.choice, choice_norm=answer.choice_norm)
            for answer in answers
        ]
    return result


def lines(name: str, result: dict) -> list[str]:
    """A task's numbers for the screen."""
    if name == "loss":
        bits = result["bits_per_byte"]
        per_byte = "" if bits is None else f", {bits:.4f} bits a byte"
        return [
            f"{name:10}{result['loss']:.6f}, perplexity {result['perplexity']:.4f}{per_byte}; "
            f"{result['tokens']:,} tokens"
        ]
    cut = result["contexts_cut"]
    return [
        f"{name:10}acc {result['acc']:.4f} +- {result['acc_stderr']:.4f}, acc_norm "
        f"{result['acc_norm']:.4f} +- {result['acc_norm_stderr']:.4f}; "
        f"{result['questions']:,} questions"
        + (f", {cut:,} with the beginning of the context cut off" if cut else "")
    ]


if __name__ == "__main__":
    program.run(main, EvaluateConfig, goes_on=True)
