"""The line protocol between bench.py and the programs it times, each in a process of its own.

A contestant is started with its Task as JSON in argv[1] and says {"ready": true} when it has
prepared it. To each line it is sent it answers with one training step: {"ms", "loss", "peak"}.
It ends when its stdin does. What goes wrong is an answer too: {"bad_input"} with a sentence for
the user, or {"failed"}. Standard library and NumPy only: a rival's memory is to be its own.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmc_jax import interrupt
from llmc_jax.config import CPU_ISAS, RECOMPUTE, BadInput, ModelConfig, model_config, option


@dataclass(frozen=True)
class Task:
    """What contestants do: AdamW steps on one batch, from the same parameters.

    Not options, because all use them: betas 0.9 and 0.95, gradients clipped to a norm of 1.
    """

    model: ModelConfig
    B: int
    T: int
    dtype: str  # of activations and matrix products: float32 or bfloat16
    ops: str = "auto"  # the last three are for our own step only
    recompute: int = 0
    cpu_isa: str = "auto"
    seed: int = 42
    learning_rate: float = 3e-4
    weight_decay: float = 0.1

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets (B,T) int32: random, the same in every process."""
        tokens = np.random.default_rng(0).integers(0, self.model.V, (self.B, self.T + 1), np.int32)
        return tokens[:, :-1], tokens[:, 1:]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Task":
        fields = json.loads(text)
        return cls(**(fields | dict(model=ModelConfig(**fields["model"]))))


@dataclass(frozen=True)
class TaskConfig:
    """Options of every program that measures a step."""

    model: str = option("d12", "model: dN, gpt2:dN or gpt3:cC")
    B: int = option(4, "sequences in a step, over all devices", minimum=1)
    T: int = option(64, "tokens in a sequence", minimum=1)
    dtype: str = option(
        "float32", "type of activations and matrix products", choices=("float32", "bfloat16")
    )
    cpu_isa: str = option(
        "auto", "instruction set of our C++ kernels (train's --cpu_isa)", choices=CPU_ISAS
    )
    recompute: int = option(
        0, "what our backward computes again (train's --recompute)", choices=RECOMPUTE
    )

    def task(self, ops: str) -> Task:
        """What these options say, with these --ops. Raises BadInput where no model can do it."""
        model = model_config(self.model)
        if model.maxT < self.T:
            raise BadInput(
                f"--T={self.T} is longer than --model={self.model} can take; use at most "
                f"{model.maxT}."
            )
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(TaskConfig)}
        return Task(**(options | dict(model=model, ops=ops)))


def serve(prepare: Callable[[Task], Callable[[], float]]) -> None:
    """The contestant's side: prepare(task) returns a function that makes one step and waits for it.

    That function returns the step's loss, before its update.
    """
    interrupt.as_before()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # bench.py ends its contestants
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(**fields) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    try:
        step = prepare(Task.from_json(sys.argv[1]))
        answer(ready=True)
        for number, _ in enumerate(sys.stdin):
            began = time.perf_counter()
            loss = step()
            ms = 1000 * (time.perf_counter() - began)
            peak = peak_bytes()
            if number == 0:  # the peak of making parameters and of compiling is not a step's
                reset_peak()
            answer(ms=ms, loss=loss, peak=peak)
    except BadInput as error:
        answer(bad_input=str(error))
        sys.exit(2)
    except Exception as error:
        answer(failed=f"{type(error).__name__}: {error}".splitlines()[0])
        raise


def peak_bytes() -> int | None:
    """Most memory of this process that was resident at once; None where Linux's /proc is not."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def reset_peak() -> None:
    """Let peak_bytes count from now on (proc(5), clear_refs)."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


@dataclass
class Contestant:
    """bench.py's side: a program in the race and what it has answered."""

    name: str
    process: subprocess.Popen
    answers: list[dict] = dataclasses.field(default_factory=list)  # of its steps
    failure: str = ""  # why it is out of the race


def start(name: str, command: list[str], task: Task) -> Contestant:
    """Start a contestant; it prepares its task while others do."""
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return Contestant(name, subprocess.Popen([*command, task.to_json()], **pipes))


def await_ready(contestant: Contestant) -> None:
    """Wait until it can step. Raises BadInput with the contestant's sentence."""
    _receive(contestant)


def step(contestant: Contestant) -> None:
    """Have it make one step, and wait for it. Raises BadInput with the contestant's sentence."""
    try:
        contestant.process.stdin.write("step\n")
        contestant.process.stdin.flush()
    except BrokenPipeError:
        pass  # it is dead, and _receive says how it died
    if answer := _receive(contestant):
        contestant.answers.append(answer)


def stop(contestant: Contestant) -> None:
    """End its process, whatever it is doing."""
    contestant.process.kill()
    contestant.process.communicate()


def _receive(contestant: Contestant) -> dict | None:
    """Its next answer; None, and a failure, where it gave up or died."""
    line = contestant.process.stdout.readline()
    answer = json.loads(line) if line else dict(failed=_death(contestant.process.wait()))
    if "bad_input" in answer:
        raise BadInput(answer["bad_input"])
    contestant.failure = answer.get("failed", "")
    return None if contestant.failure else answer


def _death(status: int) -> str:
    """How a process with this exit status ended."""
    if status >= 0:
        return f"ended with exit status {status}"
    name = signal.Signals(-status).name
    return f"killed by {name}" + (", probably out of memory" if name == "SIGKILL" else "")
