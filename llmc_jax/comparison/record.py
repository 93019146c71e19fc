"""A results file: one measurement a line, as JSON. Written by any machine, read together."""

import json
import os
import time
from pathlib import Path

from llmc_jax.config import BadInput

SCHEMA = "llmc_jax.compare 1"
# What a line must have to be shown; measure.measure makes it, and for who reads the JSON also the
# model's sizes, what each op was computed by (ops) and what told the energy (energy_by).
FIELDS = (
    "platform", "device", "devices", "model_name", "B", "T", "dtype", "recompute", "ops_asked",
    "compile_s", "step_ms", "tokens_per_s", "mfu", "peak", "memory_bytes", "planned_bytes",
    "joules_per_step", "ceilings", "passes", "other_ms", "commit", "versions", "time",
)  # fmt: skip
# What measurements of the same thing have in common: of those the last is shown.
SAME = ("device", "devices", "model_name", "B", "T", "dtype", "recompute", "ops_asked")

NAMED = 4  # so many lines of a file that are passed over are named one by one


def refuse_others(path: Path) -> None:
    """Raises BadInput where the file has a line that is no measurement, whole, old or cut short."""
    if not path.exists():
        return
    begins = f'{{"schema": "{SCHEMA.split()[0]} '
    for number, line in enumerate(_lines(path), 1):
        if line.strip() and not (line.startswith(begins) or begins.startswith(line)):
            raise BadInput(
                f"--results={path} is another program's: its line {number} is no measurement; name "
                f"another file to append to."
            )


def append(path: Path, record: dict) -> None:
    """Add a line. A line that was cut short before it stays a line of its own."""
    line = json.dumps(dict(schema=SCHEMA, time=time.strftime("%Y-%m-%d %H:%M:%S")) | record) + "\n"
    try:
        with open(path, "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read() == b"\n" else "\n" + line
            file.write(line.encode())
    except OSError as error:
        raise BadInput(f"--results={path} cannot be written: {error.strerror}.") from error


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
                bad.append(f"{path}, line {number}: {problem}")
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
        return None, "not whole (JSON ends early)"
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != SCHEMA:
        return None, f"of schema '{schema}', and this program reads '{SCHEMA}'"
    if missing := [name for name in FIELDS if name not in record]:
        return None, f"without {missing[0]}"
    return record, ""
