"""The GPU measured in one call, from the root of a clone, whatever breaks on the way.

    python -m benchmarks.gpu                       # everything that fits into 8 minutes
    python -m benchmarks.gpu --first               # the numbers that fix the goal, 3 minutes
    python -m benchmarks.gpu --stages=step,table --budget_s=240   # adds to what is there
    python -m benchmarks.gpu --platform=cpu --small   # tries the code out; its numbers mean nothing

A stage is a program of gpu_stages/ in a process of its own with a time limit. It appends a line of
JSON to --results for each row it has measured, before anything is printed, so that a kill loses
nothing; a row that dies takes its process with it, and the stage goes on behind it in a new one.
What was not measured is there by name with the reason. The last stage makes --results' lines into
a table beside it (.md); --stages=table makes it again. What stages print on stderr is in .log, what
nvcc and compute-sanitizer say in .nvcc.log and .memcheck.log, .racecheck.log and .synccheck.log.

nvcc takes a minute. Where llmc_jax/libllmc_cuda.so has come along, it is in use until that is done,
and after if that fails.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from absl import app, flags

from benchmarks.gpu_stages import results

STAGES = flags.DEFINE_list("stages", ["all"], "what to run, of sanity, build, ceilings, ...")
# Less than the 10 minutes for which a GPU is lent at a time, its start among them.
BUDGET = flags.DEFINE_float("budget_s", 480, "seconds for everything", lower_bound=1)
FIRST = flags.DEFINE_bool("first", False, "only what matters most, if there are but 3 minutes")

ROOT = Path(__file__).resolve().parent.parent


class Stage(NamedTuple):
    """A program of gpu_stages/ and its seconds."""

    name: str
    most: float
    least: float  # kept back for it by the stages before; with less it is not begun
    part: str = ""  # of its rows: the first, the rest
    isolated: bool = False  # each row in a process of its own: for what fills the memory
    environment: dict[str, str] = {}  # noqa: RUF012 never changed

    def title(self) -> str:
        return f"{self.name} {self.part}".strip()


# So that memory left by one row is there for the next, and for PyTorch in another process.
AS_NEEDED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
# Where nothing is timed: to try the ways of each matrix product takes longer than all else. What is
# taken instead is kept from the cache that stages with times read.
UNTUNED = {
    "XLA_FLAGS": "--xla_gpu_autotune_level=0",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
}

# The order in which they run, by worth, as a machine can be lost at any time: what fixes the goal,
# whether our kernels are right, how fast they are, the rest. All of `most` together is more than
# the budget: `least` sees to it that what comes late gets its time.
ALL = (
    Stage("sanity", 40, 5, environment=AS_NEEDED),
    Stage("build", 110, 70),
    Stage("ceilings", 60, 40, environment=AS_NEEDED),
    Stage("kernels_torch", 40, 15, "first"),
    Stage("step", 150, 90, "first", isolated=True),
    Stage("correctness", 90, 45, environment=AS_NEEDED | UNTUNED),
    Stage("kernels", 90, 50, environment=AS_NEEDED),
    Stage("step", 540, 55, "rest", isolated=True),
    Stage("kernels_torch", 60, 20, "rest"),
    Stage("breakdown", 60, 20, isolated=True),
    Stage("sanitizer", 90, 20, isolated=True, environment=UNTUNED),
    Stage("table", 20, 8),
)
# Of --first, beside first parts.
FIRST_TOO = ("ceilings", "table")


def selected() -> list[Stage]:
    if FIRST.value:
        return [stage for stage in ALL if stage.part == "first" or stage.name in FIRST_TOO]
    names = dict.fromkeys(stage.name for stage in ALL)
    if unknown := set(STAGES.value) - {"all", *names}:
        raise app.UsageError(f"--stages={','.join(unknown)}: the stages are {', '.join(names)}")
    return [stage for stage in ALL if {stage.name, "all"} & set(STAGES.value)]


def main(_) -> None:
    deadline = time.monotonic() + BUDGET.value
    file = results.file()
    file.parent.mkdir(parents=True, exist_ok=True)
    results.append(dict(stage="run", command=sys.argv[1:], budget_s=BUDGET.value))
    stages = selected()
    for number, stage in enumerate(stages):
        began = time.monotonic()
        for_others = sum(later.least for later in stages[number + 1 :])
        seconds = min(stage.most, deadline - began - for_others)
        if seconds < 0.9 * stage.least:  # to begin and end stages takes time too
            end = f"skipped: {deadline - began:.0f} s are left, of them {for_others:.0f} for later"
        else:
            print(f"== {stage.title()}, at most {seconds:.0f} s", flush=True)
            end = run(stage, seconds)
        took = round(time.monotonic() - began, 1)
        results.append(dict(stage=stage.title(), end=end, seconds=took))
        print(f"== {stage.title()}: {end}, {took} s", flush=True)


def run(stage: Stage, seconds: float) -> str:
    """Run the stage's rows; how that ended. A process that dies is followed by one for the rows
    behind the row it died in."""
    deadline = time.monotonic() + seconds
    begin, row = results.size(), 0
    while True:
        status, why = run_process(stage, row, deadline)
        last = next((r for r in reversed(results.read(begin)) if "row" in r), None)
        if last and last.get("started"):
            results.append(results.without_start(last) | dict(failed=why))
        if status is None:
            return f"stopped after {seconds:.0f} s"
        if status == 0:
            return "done"
        if last is None or last["row"] < row:
            return f"failed: {why}"
        row = last["row"] + 1


def run_process(stage: Stage, row: int, deadline: float) -> tuple[int | None, str]:
    """(exit status, or None where it was stopped at the deadline; what its end was)."""
    command = [
        sys.executable, "-m", f"benchmarks.gpu_stages.{stage.name}",
        *(flag.serialize() for flag in results.shared_flags()),
    ]  # fmt: skip
    if stage.part:
        command.append(f"--part={stage.part}")
    if row:
        command.append(f"--from_row={row}")
    if stage.isolated:
        command.append("--one_row")
    with open(results.file().with_suffix(".log"), "ab") as log:
        begin = log.tell()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(stage) | {results.END: str(deadline)}, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            return None, "the stage's time was over"
        finally:
            kill(process)
    return status, death(status, begin)


def kill(process: subprocess.Popen) -> None:
    """End it and what it started, which may outlive it: a row's alarm ends its process alone."""
    with suppress(ProcessLookupError):  # nothing of it is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def environment(stage: Stage) -> dict[str, str]:
    """Of a stage's process. On a GPU compiled code and what autotuners chose outlive it."""
    if results.platform() == "cpu":
        return dict(os.environ) | dict(JAX_PLATFORMS="cpu")
    cache = {"JAX_COMPILATION_CACHE_DIR": f"/tmp/llmc_jax_{os.getuid()}"}
    both = [given.get("XLA_FLAGS", "") for given in (os.environ, stage.environment)]
    merged = dict(XLA_FLAGS=" ".join(filter(None, both)))
    return cache | dict(os.environ) | stage.environment | merged


def death(status: int, begin: int) -> str:
    """How a process ended that left `status` and, from `begin` on, what is in the log."""
    if status == 0:
        return ""
    if status == -signal.SIGALRM:
        return "the row's time was over"
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    with open(results.file().with_suffix(".log"), "rb") as log:
        log.seek(begin)
        lines = log.read().decode(errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return f"{how}; {said[-1][:300]}" if said else how


if __name__ == "__main__":
    app.run(main)
