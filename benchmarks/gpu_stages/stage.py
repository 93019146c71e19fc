"""What every stage is: rows, measured one after the other, each written before the next."""

import importlib.util
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from absl import app, flags

from benchmarks.gpu_stages import results
from llmc_jax.config import BadInput

FROM_ROW = flags.DEFINE_integer("from_row", 0, "first row to measure")
ONE_ROW = flags.DEFINE_bool("one_row", False, "end after a row")

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
    first: bool = False  # among what --first measures


def run(name: str, make_rows: Callable[[], list[Row]]) -> None:
    """The main program of the stage `name`."""
    app.run(lambda _: sys.exit(_run(name, make_rows())))


def _run(name: str, rows: list[Row]) -> int:
    if results.platform() == "gpu" and not has_gpu():
        sys.exit("there is no GPU; --platform=cpu --small tries the program out")
    rows = [row for row in rows if row.first or not results.FIRST.value]
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


def need(package: str) -> None:
    """Raises Skip where `package` is not installed."""
    if importlib.util.find_spec(package) is None:
        raise Skip(f"{package} is not installed")
