"""A trace of some steps by jax.profiler, in which each instruction has the name of its op."""

import gzip
import json
import re
from contextlib import nullcontext

import jax

from llmc_jax.config import BadInput, TrainConfig
from llmc_jax.training.checkpoint import reason_of
from llmc_jax.training.run_dir import RunDir

# What JAX puts around the names that ops/op.py (named) and gpt2.py give.
NOT_OURS = re.compile(r"jit\(.*\)|shard_map|while|body|closed_call|ffi_call")
MODULE = re.compile(r"HloModule ([\w.-]+)")
# In XLA's program: an instruction, and the names of what it belongs to (ops/op.py, named).
INSTRUCTION = re.compile(r'%?([\w.-]+) = .*metadata=\{[^}]*op_name="([^"]*)"')


def profiled_steps(cfg: TrainConfig) -> range | None:
    """The steps of --profile_steps=A:B, counted from 1 as on the screen, B included.

    None where there are none. Raises BadInput where it is no such range, or past --max_steps.
    """
    if not cfg.profile_steps:
        return None
    flag = f"--profile_steps={cfg.profile_steps}"
    match = re.fullmatch(r"(\d+):(\d+)", cfg.profile_steps)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise BadInput(f"{flag} is not a range of steps; write the first and the last, as 10:15.")
    if int(match[2]) > cfg.max_steps:
        raise BadInput(f"{flag} is past the end: the run has {cfg.max_steps} steps (--max_steps).")
    if not cfg.output_dir:
        raise BadInput(f"{flag} needs --output_dir, where the trace is written.")
    return range(int(match[1]), int(match[2]) + 1)


class Profile:
    """Traces the steps of --profile_steps; a context that ends a trace that is under way, and says
    where it is."""

    def __init__(self, run: RunDir | None, cfg: TrainConfig, compiled, start: int):
        """run: None in a process that writes nothing; it traces nothing, for all would write the
        same files. compiled: the training step. start: updates made before; steps until then are
        over."""
        self._folder = run.profile if run else None
        self._compiled = compiled
        steps = (profiled_steps(cfg) if run else None) or range(0)
        self._steps = range(max(steps.start, start + 1), steps.stop)
        self._tracing, self._last = False, self._steps.start  # of the steps that are traced
        if steps and not self._steps:
            print(f"--profile_steps={cfg.profile_steps}: those steps are over, none is traced")

    def turns_at(self, step: int) -> bool:
        """Whether the trace begins or ends between update `step` (0-based) and the one before."""
        return bool(self._steps) and step + 1 in (self._steps.start, self._steps.stop)

    def start(self, step: int) -> None:
        """Begin the trace if update `step` is its first. Nothing else may be under way."""
        if self._steps and step + 1 == self._steps.start:
            start_trace(self._folder)
            self._tracing = True

    def step(self, step: int):
        """A context for the dispatch of update `step`, which the trace then shows as one."""
        if not self._tracing:
            return nullcontext()
        self._last = step + 1
        return jax.profiler.StepTraceAnnotation("step", step_num=step + 1)

    def stop(self, step: int) -> str:
        """End the trace if update `step` is behind its last; where it is, or ''."""
        if not self._tracing or step + 1 != self._steps.stop:
            return ""
        return self._stop()

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_) -> None:
        if self._tracing:
            print(self._stop())

    def _stop(self) -> str:
        self._tracing = False
        try:
            return self._write()
        except Exception as error:  # XLA's are of other types; whatever it is, the run goes on
            return f"the profile cannot be written: {reason_of(error)}"

    def _write(self) -> str:
        jax.profiler.stop_trace()
        written = max(self._folder.rglob("*.trace.json.gz"), key=lambda path: path.stat().st_mtime)
        path = self._folder / f"steps_{self._steps.start}_{self._last}.json.gz"
        with gzip.open(written) as file:
            trace = named(json.load(file), self._compiled.as_text())
        with gzip.open(path, "wt") as file:
            json.dump(trace, file)
        return (
            f"profile of steps {self._steps.start} to {self._last}: {path} for "
            f"ui.perfetto.dev, {self._folder} for XProf"
        )


def start_trace(folder) -> None:
    """Begin a trace of what XLA runs, to be written in `folder`."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # every call of Python would drown the step
    jax.profiler.start_trace(folder, profiler_options=options)


def instruction_names(hlo: str) -> dict[str, str]:
    """Instruction -> name of what it belongs to, as block3/attention.backward, in a program."""
    return {name: short_name(path) or name for name, path in INSTRUCTION.findall(hlo)}


def short_name(op_name: str) -> str:
    """XLA's op_name without what JAX puts around our names."""
    return "/".join(part for part in op_name.split("/") if not NOT_OURS.fullmatch(part))


def named(trace: dict, hlo: str) -> dict:
    """`trace` with each instruction of the program `hlo` under the name of what it belongs to; its
    own stays in args.hlo_op. Instructions of other programs (a validation) keep theirs."""
    module, names = MODULE.match(hlo)[1], instruction_names(hlo)
    events = []
    for event in trace["traceEvents"]:
        if event.get("name", "").startswith("end: "):
            continue  # XLA:CPU marks ends beside the events that have a duration
        args = event.get("args", {})
        if args.get("hlo_module") == module and args.get("hlo_op") in names:
            event = event | dict(name=names[args["hlo_op"]])
        events.append(event)
    return trace | dict(traceEvents=events)
