"""The lines of a run's two logs, metrics.jsonl and llm.c's main.log, read as the same objects.

A line may be damaged: cut short when the run was killed, or made of NULs after a power loss.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

# main.log's words, in the names of metrics.jsonl.
MAIN_LOG = {
    "trl": "train_loss",
    "tel": "val_loss",
    "lr": "learning_rate",
    "norm": "grad_norm",
    "eval": "hellaswag_acc_norm",
}


class Line(NamedTuple):
    """A line that is whole."""

    text: str
    metrics: dict  # "step", and numbers under the names of metrics.jsonl


def read_lines(path: Path) -> tuple[list[Line], list[int]]:
    """The lines of a log, and the numbers (from 1) of those that are damaged; none of no file."""
    parse = _metrics_line if path.suffix == ".jsonl" else _main_log_line
    whole, damaged = [], []
    if not path.exists():
        return whole, damaged
    with open(path, errors="replace", newline="\n") as file:
        for number, text in enumerate(file, 1):
            try:
                whole.append(Line(text, parse(text)))
            except (ValueError, KeyError, OverflowError, RecursionError):
                damaged.append(number)
    return whole, damaged


def json_line(metrics: dict) -> str:
    """The line of metrics.jsonl for an object. JSON has no NaN and no infinity: they are null."""
    finite = {name: n if math.isfinite(n) else None for name, n in metrics.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


def of_an_update(metrics: dict) -> bool:
    """Whether it is update number `step` that was logged, and not what was done before it."""
    return "train_loss" in metrics


def updates(metrics: dict) -> int:
    """The updates made when it was logged; update number s is counted from 0."""
    return metrics["step"] + of_an_update(metrics)


def logged_before(metrics: dict, start: int, loop_done: bool) -> bool:
    """Whether it belongs before the start of a run at step `start`.

    loop_done: what is done before that step, a validation, is not done again.
    """
    return updates(metrics) < start + (loop_done or of_an_update(metrics))


def _metrics_line(text: str) -> dict:
    """The object of a line of metrics.jsonl; null, as `json_line` has it, is NaN."""
    metrics = json.loads(_whole(text))
    if isinstance(metrics, dict):
        metrics = {name: math.nan if n is None else n for name, n in metrics.items()}
    return _checked(metrics)


def _main_log_line(text: str) -> dict:
    """The object of a line of main.log."""
    words = dict(word.split(":") for word in _whole(text).split())
    step = int(words.pop("s"))
    return _checked(dict(step=step) | {MAIN_LOG[word]: float(n) for word, n in words.items()})


def _whole(text: str) -> str:
    """`text`, unless its end is missing: then its last number may be cut short."""
    if not text.endswith("\n"):
        raise ValueError("no end of line")
    return text


def _checked(metrics: dict) -> dict:
    """`metrics`, unless it is not a step with numbers; OverflowError where no float holds one."""
    if not isinstance(metrics, dict) or type(metrics.get("step")) is not int:
        raise ValueError("no step")
    if not 0 <= metrics["step"] < 2**31:
        raise ValueError("more steps than a run can have, or fewer")
    if len(metrics) == 1 or not all(isinstance(n, int | float) for n in metrics.values()):
        raise ValueError("a step and nothing more, or what is no number")
    list(map(float, metrics.values()))
    return metrics
