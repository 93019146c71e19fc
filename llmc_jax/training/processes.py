"""Several processes that make one run together, through JAX's own runtime.

Every process runs the whole program; what must happen once (files, the screen) the first one does.
Nothing is sent but by JAX: addresses and heartbeats by its coordinator, all else by collectives.
"""

import math
import os
import pickle
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils

from llmc_jax.config import BadInput, RunStopped, TrainConfig, refused_path

# Who tells a process of the others -> the variables by which that shows.
LAUNCHERS = {
    "SLURM": ("SLURM_STEP_NODELIST", "SLURM_NTASKS"),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE",),
    "Kubernetes": ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"),
}
COUNTS = {"SLURM": "SLURM_NTASKS", "Open MPI": "OMPI_COMM_WORLD_SIZE"}
END_S = 3600  # how long processes wait for the last one to end: it may be writing a checkpoint


class Agreed(BadInput):
    """Bad input that all processes know of: each of them ends in the usual way."""


class AgreedStop(RunStopped):
    """The same of what stops a run."""


def first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def several() -> bool:
    """Whether there are other processes."""
    return jax.process_count() > 1


def start(cfg: TrainConfig) -> None:
    """Meet the other processes, if there are to be any; before JAX is asked for a device.

    Raises BadInput where the flags do not say enough. Ends the process where the others do not come
    within --coordinator_timeout.
    """
    place = _place(cfg)
    if place is None:
        return
    if cfg.mapper == "pmap":
        raise BadInput("--mapper=pmap maps the devices of one process; take shard_map for several.")
    late = threading.Timer(cfg.coordinator_timeout, _give_up, [cfg, place])
    late.daemon = True
    late.start()
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from stop.py
    # Programs in flight at once on CPUs wait for each other's collectives, and never end.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        jax.distributed.initialize(
            **place,
            initialization_timeout=2 * cfg.coordinator_timeout,  # not to end before `late`
            heartbeat_timeout_seconds=cfg.heartbeat_timeout,
            shutdown_timeout_seconds=END_S,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"the processes cannot meet at {_address(place)}: {reason}") from error
    finally:
        late.cancel()
    if not first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  the screen is the first process's


def _place(cfg: TrainConfig) -> dict | None:
    """What jax.distributed.initialize is to be told; None where this process is alone."""
    given = dict(
        coordinator_address=cfg.coordinator_address or None,
        num_processes=None if cfg.num_processes == -1 else cfg.num_processes,
        process_id=None if cfg.process_id == -1 else cfg.process_id,
    )
    if cfg.num_processes != -1 and cfg.process_id >= cfg.num_processes:
        raise BadInput(
            f"--process_id={cfg.process_id} must be below --num_processes={cfg.num_processes}."
        )
    if cfg.num_processes == 1:
        return None
    if address := cfg.coordinator_address:
        port = re.fullmatch(r".+:(\d{1,5})", address)
        if not port or not 0 < int(port[1]) < 2**16:
            raise BadInput(
                f"--coordinator_address={address} must be HOST:PORT, the port below {2**16}."
            )
    if None not in given.values():
        return given | dict(cluster_detection_method="deactivate")
    launcher = _launcher()
    if launcher == "Open MPI" and "OMPI_MCA_orte_hnp_uri" not in os.environ:  # from version 5 on
        if not cfg.coordinator_address:
            raise BadInput(
                "Open MPI does not say where its first process is; give --coordinator_address="
                "HOST:PORT, or --num_processes=1 for a process that is alone."
            )
        rank, size = (int(os.environ[f"OMPI_COMM_WORLD_{name}"]) for name in ("RANK", "SIZE"))
        return given | dict(num_processes=size, process_id=rank)
    if launcher:
        return given
    if all(value is None for value in given.values()):
        return None
    missing = [f"--{name}" for name, value in given.items() if value is None]
    raise BadInput(f"several processes need {' and '.join(missing)} too; see --help.")


def _launcher() -> str | None:
    """Who started this process as one of several."""
    for name, variables in LAUNCHERS.items():
        alone = name in COUNTS and os.environ.get(COUNTS[name]) == "1"
        if all(variable in os.environ for variable in variables) and not alone:
            return name
    return None


def _address(place: dict) -> str:
    nodes = os.environ.get("SLURM_STEP_NODELIST")
    return place["coordinator_address"] or (f"the first of {nodes}" if nodes else "process 0")


def _give_up(cfg: TrainConfig, place: dict) -> None:
    """End the process, which waits where Python cannot reach it."""
    waiting = place["process_id"] == 0
    who = "not all of the other processes came to" if waiting else "nobody answers at"
    end(
        f"{who} {_address(place)} within {cfg.coordinator_timeout} s; see that all are started, "
        f"with one --coordinator_address that they can reach (--coordinator_timeout waits longer).",
        status=1,  # no mistake in this one's flags: started once more, it may find them
    )


def end(sentence: str, *, status: int) -> None:
    """End the process at once: the usual way waits for the others, which wait for this one."""
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)


# What processes say to each other.


def exchange(thing) -> list:
    """What each process calls this with, in their order; anything that can be pickled."""
    if not several():
        return [thing]
    data = np.frombuffer(pickle.dumps(thing), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(data.size))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


@contextmanager
def all_or_none() -> Iterator[None]:
    """What is done inside succeeds in all processes, or else raises Agreed in all of them (also for
    a path that the system refuses), or AgreedStop where it was RunStopped."""
    problem = None
    try:
        yield
    except (BadInput, RunStopped) as error:
        problem = error
    except OSError as error:
        if not (refused := refused_path(error)):
            raise
        problem = BadInput(refused)
    kind = AgreedStop if isinstance(problem, RunStopped) else Agreed
    problems = exchange(problem and (kind, str(problem)))
    if problem:
        raise kind(str(problem)) from problem
    for number, other in enumerate(problems):
        if other:
            kind, text = other
            cannot = "go on" if kind is AgreedStop else "start"
            raise kind(f"process {number} cannot {cannot}: {text}")


def from_first(make: Callable):
    """What make() gives in the first process, in all of them."""
    with all_or_none():
        made = make() if first() else None
    return exchange(made)[0]


def in_turn(make: Callable):
    """make() in the first process and then in the others, for whom what it downloads is there."""
    with all_or_none():
        made = make() if first() else None
    return made if first() else make()


def refuse_differences(what: dict) -> None:
    """Raises Agreed, which names what is not the same in all processes."""
    everybodys = exchange(what)
    zero = everybodys[0]
    for number, other in enumerate(everybodys):
        for name in zero | other:  # another version may have other flags
            value, others = zero.get(name, "not known"), other.get(name, "not known")
            if others != value:
                raise Agreed(
                    f"{name} is {value} in process 0 and {others} in process {number}; all "
                    f"processes must be given the same."
                )


# From the meeting on.


@contextmanager
def ending_together(
    heartbeat_timeout: int, again: str = "--resume"
) -> Iterator[Callable[[int], None]]:
    """What goes wrong inside, in this process or another, ends this one with a sentence, at once:
    whatever is to be closed or waited for belongs inside. again: what all are to be started with
    then, in words.

    Gives a function to be called at every step; where it is not for long, a sentence says what that
    may mean, for JAX ends a process whose peers are silent where Python cannot help it.
    """
    if not several():
        yield lambda step: None
        return
    watch = _Watch(heartbeat_timeout, again)
    try:
        yield watch.step
    except (Agreed, AgreedStop):
        raise
    except KeyboardInterrupt:
        end("interrupted", status=130)
    except (BadInput, RunStopped) as error:
        end(str(error), status=2 if isinstance(error, BadInput) else 1)
    except Exception as error:
        # of JAX's own type, or, where Python asks for a result, of another
        lost = any(word in str(error) for word in ("Gloo", "NCCL", "oordination"))
        if not lost and not isinstance(error, jax.errors.JaxRuntimeError):
            _end_with_traceback(watch.last)
        reason = next(filter(None, str(error).splitlines()), "no reason given")
        if not lost:
            end(f"this process cannot go on after step {watch.last}: {reason}", status=1)
        end(
            f"the other processes cannot be reached after step {watch.last} ({reason[:200]}): one "
            f"of them has ended, and its own last words say why; start all again with {again}, on "
            f"as many devices as there are.",
            status=1,
        )
    except BaseException:
        _end_with_traceback(watch.last)
    finally:
        watch.close()


def _end_with_traceback(step: int) -> None:
    traceback.print_exc()
    end(f"this process ended after step {step}", status=1)


class _Watch:
    """A thread that speaks up when no step has come for half of the heartbeat's limit."""

    def __init__(self, limit: int, again: str):
        self.last, self._limit, self._time = 0, limit, math.inf  # of the last step; none yet
        self._again = again
        self._closed = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def step(self, number: int) -> None:
        self.last, self._time = number, time.monotonic()

    def close(self) -> None:
        self._closed.set()

    def _look(self) -> None:
        told = None
        while not self._closed.wait(min(1, self._limit / 4)):
            if time.monotonic() - self._time > self._limit / 2 and told != self.last:
                told = self.last
                print(
                    f"process {jax.process_index()} has waited {self._limit / 2:.0f} s at step "
                    f"{told}: if another process has died, this one is ended when "
                    f"--heartbeat_timeout={self._limit} s are over, with status 134; then start "
                    f"all again with {self._again}, on as many devices as there are.",
                    file=sys.stderr,
                    flush=True,
                )


class Agreement:
    """What any of the processes wants, known to all of them at the same step: the one after."""

    def __init__(self, greatest: Callable):
        """greatest: numbers, one a process -> the greatest of all processes, on the devices."""
        self._greatest, self._pending = greatest, None

    def __call__(self, *wishes: int) -> tuple[int, ...]:
        """The greatest of each wish as of the last call; alone, one's own as of now."""
        if not several():
            return wishes
        before, self._pending = self._pending, self._greatest(np.array(wishes, np.int32))
        return tuple(np.asarray(before).tolist()) if before is not None else (0,) * len(wishes)
