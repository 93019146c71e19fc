"""Time the training step against others: python -m llmc_jax.bench --programs=auto,pytorch."""

import importlib.util
import shlex
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from llmc_jax import contestant, program
from llmc_jax.config import BadInput, option
from llmc_jax.contestant import Contestant, Task, TaskConfig
from llmc_jax.files import new_file, refuse_unwritable
from llmc_jax.machine import describe

RIVALS = Path(__file__).parent.parent / "benchmarks" / "rivals"
# Programs that are not ours -> the package each needs, and how to install it.
NEEDS = {"pytorch": ("torch", "torch==2.13.0"), "autodiff": ("optax", "optax")}

PAUSE = 0.05  # seconds between turns: a thread pool spins for a while after its last work

HEADS = (
    "program", "ms a step", "min-max", "tokens/s", "speed, x the first", "peak memory, MiB",
    "memory, x the first", "loss",
)  # fmt: skip


@dataclass(frozen=True)
class BenchConfig(TaskConfig):
    """What is timed, and for how long."""

    steps: int = option(5, "timed steps of each program", minimum=1)
    warmup: int = option(2, "steps of each program before those, not counted", minimum=1)
    programs: str = option(
        "auto,jnp,pytorch,autodiff",
        "what to time, separated by commas: pytorch and autodiff (plain JAX with optax) "
        "are rivals; any other word is our step with that value of --ops, where + stands for its "
        "comma (e.g. auto,jnp,jnp+attention=ffi,pytorch)",
    )
    output: str = option("", "file to append the table to; empty: only print it", path=True)


def main(cfg: BenchConfig) -> int:
    """Check what the user gave, time the programs in turn, print the table.

    Returns the exit status: 1 where no program could make its steps.
    """
    names = [name for name in cfg.programs.split(",") if name]
    check(cfg, names)
    entries = [(name, command(name), cfg.task(spec(name))) for name in names]
    versions = describe(*(NEEDS[name][0] for name in dict.fromkeys(names) if name in NEEDS))
    results = race(entries, cfg)
    called = shlex.join(["python", "-m", "llmc_jax.bench", *sys.argv[1:]])
    report = f"`{called}`: {versions}\n\n{caption(cfg)}\n\n{table(results, cfg)}\n"
    print(report)
    if cfg.output:
        append(cfg.output, report)
    return int(all(result.failure for result in results))


def check(cfg: BenchConfig, names: list[str]) -> None:
    """Raises BadInput for what can be told before anything is started."""
    if not names:
        raise BadInput("--programs names no program; write for instance auto,jnp,pytorch.")
    for name in NEEDS.keys() & set(names):
        package, requirement = NEEDS[name]
        if not (RIVALS / f"{name}.py").exists():
            raise BadInput(
                f"--programs={name} needs {RIVALS / name}.py, which only a clone of the "
                f"repository has; run from one, or leave {name} out."
            )
        if importlib.util.find_spec(package) is None:
            raise BadInput(
                f"--programs={name} needs {package}; pip install {requirement}, or leave "
                f"{name} out."
            )
    if cfg.output:
        refuse_unwritable(cfg.output, "--output=", overwrite=True)
        read_before(cfg.output)


def command(name: str) -> list[str]:
    """What starts the contestant `name`."""
    if name in NEEDS:
        return [sys.executable, str(RIVALS / f"{name}.py")]
    return [sys.executable, "-m", "llmc_jax.bench_step"]


def spec(name: str) -> str:
    """The --ops of the contestant `name`."""
    return name.replace("+", ",")


def race(entries: list[tuple[str, list[str], Task]], cfg: BenchConfig) -> list[Contestant]:
    """Start a process for each (name, command, task); have them step in turn, one at a time.

    One that fails drops out and the others go on. Raises BadInput with a contestant's sentence.
    """
    with ExitStack() as stack:
        contestants = []
        for entry in entries:
            contestants.append(contestant.start(*entry))
            stack.callback(contestant.stop, contestants[-1])
        for one in contestants:
            contestant.await_ready(one)
        for round in range(cfg.warmup + cfg.steps):
            for one in contestants:
                if not one.failure:
                    time.sleep(PAUSE)
                    contestant.step(one)
                    print_progress(one, round, cfg)
    return contestants


def print_progress(one: Contestant, round: int, cfg: BenchConfig) -> None:
    """A line on the step just made; not on stdout, where the table goes."""
    kind = f"step {round + 1 - cfg.warmup}/{cfg.steps}" if round >= cfg.warmup else "warm-up"
    result = one.failure or f"{one.answers[-1]['ms']:.0f} ms"
    print(f"{kind}: {one.name}: {result}", file=sys.stderr, flush=True)


def caption(cfg: BenchConfig) -> str:
    """What the table shows."""
    return (
        f"{cfg.model}, B={cfg.B}, T={cfg.T}, {cfg.dtype}; a step is forward, backward, clipping "
        f"and AdamW. Programs run in turn, each in a process of its own; median of {cfg.steps} "
        f"steps after {cfg.warmup} of warm-up. Peak memory is the most that was resident in host "
        f"memory (VmHWM) since the end of the first warm-up step: making the parameters and "
        f"compiling are left out, what they leave behind is not."
    )


def table(contestants: list[Contestant], cfg: BenchConfig) -> str:
    """The answers as Markdown."""
    lines = [f"| {' | '.join(HEADS)} |", "|" + "---|" * len(HEADS)]
    for one in contestants:
        cells = [f"failed: {one.failure}"] if one.failure else numbers(one, contestants[0], cfg)
        cells += [""] * (len(HEADS) - 1 - len(cells))
        lines.append(f"| {' | '.join([title(one.name), *cells])} |")
    return "\n".join(lines)


def title(name: str) -> str:
    """What the table calls the program `name`."""
    return name if name in NEEDS else f"llmc_jax --ops={spec(name)}"


def numbers(one: Contestant, first: Contestant, cfg: BenchConfig) -> list[str]:
    """The cells of a contestant that made all its steps."""
    timed = [answer["ms"] for answer in one.answers[cfg.warmup :]]
    ms, peak = median_ms(one, cfg), one.answers[-1]["peak"]
    speedup = memory = ""
    if not first.failure:
        speedup = f"{median_ms(first, cfg) / ms:.2f}x"
        memory = f"{peak / first.answers[-1]['peak']:.2f}x" if peak else ""
    return [
        f"{ms:.0f}",
        f"{min(timed):.0f}-{max(timed):.0f}",
        f"{1000 * cfg.B * cfg.T / ms:.0f}",
        speedup,
        f"{peak / 2**20:.0f}" if peak else "unknown",
        memory,
        f"{one.answers[-1]['loss']:.4f}",
    ]


def median_ms(one: Contestant, cfg: BenchConfig) -> float:
    """Milliseconds of a timed step."""
    return statistics.median(answer["ms"] for answer in one.answers[cfg.warmup :])


def append(output: str, report: str) -> None:
    """Add the report to the file, a blank line after what is there."""
    before = read_before(output)
    with new_file(output, overwrite=True) as file:
        file.write((before + b"\n\n" if before else b"") + report.encode())


def read_before(output: str) -> bytes:
    """What is in the file, in any encoding, without space at its end. Raises BadInput."""
    path = Path(output)
    try:
        return path.read_bytes().rstrip() if path.exists() else b""
    except OSError as error:
        raise BadInput(f"--output={output} cannot be read: {error.strerror}.") from error


if __name__ == "__main__":
    program.run(main, BenchConfig, goes_on=True)
