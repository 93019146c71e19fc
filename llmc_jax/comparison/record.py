"""A results file: one measurement a line, as JSON. Written by any machine, read together."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from llmc_jax.config import BadInput
from llmc_jax.files import refuse_no_file, refuse_unwritable

SCHEMA = "llmc_jax.compare 1"
LARGEST = 1e30  # of a number: what is computed from such is finite


class Kind(NamedTuple):
    """What a value may be."""

    words: str
    holds: Callable[[object], bool]


def _is_number(x, least: float = 0) -> bool:
    return type(x) in (int, float) and least <= x <= LARGEST


TEXT = Kind("line of text", lambda x: isinstance(x, str) and x.isprintable())
COUNT = Kind("whole number above 0", lambda x: type(x) is int and _is_number(x, 1))
AMOUNT = Kind("number of 0 or more", _is_number)
RATE = Kind("number of 1 or more", lambda x: _is_number(x, 1))
UNKNOWN_OR = Kind(f"{AMOUNT.words}, or null", lambda x: x is None or _is_number(x))
LEVEL = Kind("whole number of 0 or more", lambda x: type(x) is int and _is_number(x))
EACH = "each"  # for the keys of an object that may be any
# What a line must have to be shown, a list not being empty; measure.measure makes it, and for who
# reads the JSON also the model's sizes, what each op was computed by (ops) and what told the energy
# (energy_by).
FIELDS = dict(
    platform=TEXT, device=TEXT, devices=COUNT, model_name=TEXT, B=COUNT, T=COUNT, dtype=TEXT,
    recompute=LEVEL, ops_asked=TEXT, cpu_isa=TEXT, compile_s=AMOUNT, step_ms=[AMOUNT],
    tokens_per_s=AMOUNT, mfu={"llm.c": AMOUNT, "PaLM": AMOUNT}, peak=dict(flops=AMOUNT, name=TEXT),
    memory_bytes=UNKNOWN_OR, planned_bytes=AMOUNT, joules_per_step=UNKNOWN_OR,
    ceilings=dict(copy_bytes_per_s=RATE, matmul_flops=RATE),
    passes={EACH: dict(flop=AMOUNT, bytes=AMOUNT, ms=UNKNOWN_OR)}, other_ms=UNKNOWN_OR,
    commit=TEXT, versions={EACH: TEXT}, time=TEXT,
)  # fmt: skip
# What measurements of the same thing have in common: of those the last is shown.
SAME = ("device", "devices", "model_name", "B", "T", "dtype", "recompute", "ops_asked", "cpu_isa")
BEFORE = dict(cpu_isa="")  # of lines that were written before it was

REMEDY = "remove the line, or measure again"
NAMED = 4  # so many lines of a file that are passed over are named one by one


def refuse_others(path: Path) -> None:
    """Raises BadInput where the file has a line that is no measurement, whole, old or cut short, or
    where nothing can be appended to it."""
    refuse_no_file(path)
    if not path.exists():
        return refuse_unwritable(path, "--results=")
    begins = f'{{"schema": "{SCHEMA.split()[0]} '
    for number, line in enumerate(_lines(path), 1):
        if line.strip() and not (line.startswith(begins) or begins.startswith(line)):
            raise BadInput(
                f"--results={path} is another program's: its line {number} is no measurement; name "
                f"another file to append to."
            )
    _open(path).close()


def append(path: Path, record: dict) -> None:
    """Add a line. A line that was cut short before it stays a line of its own."""
    line = json.dumps(dict(schema=SCHEMA, time=time.strftime("%Y-%m-%d %H:%M:%S")) | record) + "\n"
    try:
        with _open(path) as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read() == b"\n" else "\n" + line
            file.write(line.encode())
    except OSError as error:
        raise _unwritable(path, error) from error


def _open(path: Path) -> BinaryIO:
    try:
        return open(path, "ab+")
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> BadInput:
    return BadInput(f"--results={path} cannot be written: {error.strerror}; name another file.")


def read(paths: list[Path]) -> tuple[list[dict], list[str]]:
    """(the latest record of each thing measured, the fastest first; what was passed over and why).

    Raises BadInput where a file cannot be read.
    """
    latest, skipped = {}, []
    for path in paths:
        bad = []
        for number, line in enumerate(_lines(path), 1):
            record, problem = parse(line)
            if problem:
                bad.append(f"{path}, line {number}: {problem}; {REMEDY}")
            elif record:
                key = tuple(record[name] for name in SAME)
                if key not in latest or record["time"] >= latest[key]["time"]:
                    latest[key] = record
        skipped += bad[:NAMED]
        if len(bad) > NAMED:
            skipped.append(f"{path}: {len(bad) - NAMED} more lines")
    return sorted(latest.values(), key=lambda r: -r["tokens_per_s"]), skipped


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError as error:
        raise BadInput(f"--results={path} cannot be read: {error.strerror}.") from error


def parse(line: str) -> tuple[dict | None, str]:
    """(record, '') or (None, why not); (None, '') of an empty line."""
    if not line.strip():
        return None, ""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # which what is in too many brackets ends with
        return None, "no whole JSON"
    if not isinstance(record, dict):
        return None, "no JSON object"
    if not isinstance(schema := record.get("schema"), str):
        return None, "without schema"
    if schema != SCHEMA:
        return None, f"of schema {schema[:40]!r}, and this program reads {SCHEMA!r}"
    record = BEFORE | record
    problem = wrong(record, FIELDS)
    return (None, problem) if problem else (record, "")


def wrong(value, kind: Kind | list | dict, name: str = "") -> str:
    """What of `value`, which is called `name`, is not of its kind (written as FIELDS is), in words;
    '' where all is."""
    if isinstance(kind, Kind):
        return "" if kind.holds(value) else f"its {name} is no {kind.words}"
    if isinstance(kind, list):
        if not isinstance(value, list) or not value:
            return f"its {name} is no list with something in it"
        parts = [(one, kind[0], f"{name}[{place}]") for place, one in enumerate(value)]
    else:
        if not isinstance(value, dict):
            return f"its {name} is no object"
        inside = f"{name}." if name else ""
        if missing := [key for key in kind if key != EACH and key not in value]:
            return f"without {inside}{missing[0]}"
        if odd := [key for key in value if EACH in kind and not TEXT.holds(key)]:
            return f"its {inside}{odd[0]!a} is no {TEXT.words}"
        wanted = dict.fromkeys(value, kind[EACH]) if EACH in kind else kind
        parts = [(value[key], one, f"{inside}{key}") for key, one in wanted.items()]
    return next((problem for part in parts if (problem := wrong(*part))), "")
