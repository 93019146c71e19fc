"""What every stage is: rows, measured one after the other, each written before the next."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from absl import app, flags

from benchmarks.gpu_stages import results
from llmc_jax.config import BadInput

FROM_ROW = flags.DEFINE_integer("from_row", 0, "first row to measure")
ONE_ROW = flags.DEFINE_bool("one_row", False, "end after a row")
PART = flags.DEFINE_enum("part", "", ["", "first", "rest"], "which rows: the first ones, or others")

ROOT = Path(__file__).resolve().parent.parent.parent
AGAIN = 75  # exit status: there are rows left, for another process

# After these a process gets nothing right any more.
FATAL = ("CUDA_ERROR", "cudaError", "illegal", "misaligned", "launch failure", "device-side")


class Skip(Exception):
    """What this row needs is not there; the message says what."""


class Row(NamedTuple):
    """One measurement: `op` by contestant `by`. measure() returns the numbers as a dict."""

    op: str
    by: str
    measure: Callable[[], dict]
    seconds: int = 60  # then the process is ended
    first: bool = False  # before all other stages' rows that are not


def run(name: str, make_rows: Callable[[], list[Row]]) -> None:
    """The main program of the stage `name`."""
    app.run(lambda _: sys.exit(_run(name, make_rows())))


def _run(name: str, rows: list[Row]) -> int:
    if results.platform() == "gpu" and not has_gpu():
        sys.exit("there is no GPU; --platform=cpu --small tries the program out")
    if PART.value:
        rows = [row for row in rows if row.first == (PART.value == "first")]
    if FROM_ROW.value == 0:
        planned = [[row.op, row.by] for row in rows]
        results.append(dict(stage=name, planned=planned))
    for number, row in enumerate(rows):
        if number < FROM_ROW.value:
            continue
        key = dict(stage=name, row=number, op=row.op, by=row.by)
        results.append(key | dict(started=True))
        # Not handled, so that it also ends a process that waits for the GPU.
        signal.alarm(row.seconds)
        result = _measure(row)
        signal.alarm(0)
        results.append(key | result)
        print(f"{row.op} | {row.by} | {_short(result)}", flush=True)
        over = any(word in result.get("failed", "") for word in FATAL)
        if (ONE_ROW.value or over) and number + 1 < len(rows):
            return AGAIN
    return 0


def has_gpu() -> bool:
    """Whether there is an NVIDIA driver, asked of neither JAX nor PyTorch."""
    return Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None


def _measure(row: Row) -> dict:
    try:
        return row.measure()
    except (Skip, BadInput) as reason:
        return dict(skipped=str(reason))
    except Exception as error:
        traceback.print_exc()
        said = " ".join(str(error).split())
        return dict(failed=f"{type(error).__name__}: {said[:300]}")


def _short(result: dict) -> str:
    """The numbers that fit on a line."""
    shown = (
        f"{key} {value}" for key, value in result.items() if not isinstance(value, list | dict)
    )
    return ", ".join(shown)[:200]


def seconds_left() -> float:
    """Until this stage is stopped; without end where nobody stops it."""
    return float(os.environ.get(results.END, "inf")) - time.monotonic()


def call(command: list[str], name: str, seconds: float, **options) -> tuple[int | None, str]:
    """(exit status of `command`, None where it was not done after `seconds`; what it said). What it
    says is at once in the file of that `name` beside the results, where a kill leaves it."""
    path = results.file().with_suffix(f".{name}.log")
    with open(path, "ab") as out:
        begin = out.tell()
        try:
            status = subprocess.run(
                command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, check=False,
                timeout=max(seconds, 1), **options,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            status = None
    return status, path.read_bytes()[begin:].decode(errors="replace")


def need(package: str) -> None:
    """Raises Skip where `package` is not installed."""
    if importlib.util.find_spec(package) is None:
        raise Skip(f"{package} is not installed")
