"""Energy that the machine says it used; where it does not say, there is no number."""

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")  # Linux: Intel's and AMD's RAPL
PERIOD = 0.1  # seconds between two readings of a GPU's power


class Energy:
    """Joules between the ends of `measured`, and who said so; None where nobody did."""

    def __init__(self):
        self.joules: float | None = None
        self.by = ""


@contextmanager
def measured(platform: str) -> Iterator[Energy]:
    """The energy of what is done inside: of all GPUs on a GPU, of the processors on a CPU."""
    energy = Energy()
    if platform == "gpu":
        with _power_of_gpus(energy):
            yield energy
    else:
        before = _counters() if platform == "cpu" else {}
        yield energy
        after = _counters() if before else {}
        if before and before.keys() == after.keys():
            energy.joules = sum(_used(zone, before[zone], after[zone]) for zone in before)
            energy.by = "RAPL, processor packages"


def _counters() -> dict[Path, int]:
    """Zone of a whole processor package -> its counter, microjoules. {} where there are none."""
    counters = {}
    for zone in sorted(POWERCAP.glob("*-rapl:*")):
        if zone.name.count(":") == 1:  # those with two are parts of these
            try:
                counters[zone] = int((zone / "energy_uj").read_text())
            except (OSError, ValueError):  # only root may read it
                return {}
    return counters


def _used(zone: Path, before: int, after: int) -> float:
    """Joules between two readings; the counter starts again at 0 past its range."""
    if after < before:
        after += int((zone / "max_energy_range_uj").read_text())
    return (after - before) / 1e6


@contextmanager
def _power_of_gpus(energy: Energy) -> Iterator[None]:
    """Mean of what nvidia-smi reads while this lasts, times how long it lasts."""
    readings, done = [], threading.Event()

    def read() -> None:
        while not done.wait(PERIOD):
            if (watts := _watts()) is not None:
                readings.append(watts)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    began = time.perf_counter()
    yield
    seconds = time.perf_counter() - began
    done.set()
    thread.join()
    if readings:
        energy.joules = seconds * sum(readings) / len(readings)
        energy.by = f"nvidia-smi, {len(readings)} readings of all GPUs"


def _watts() -> float | None:
    command = ["nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return sum(map(float, told.split()))
    except (OSError, subprocess.CalledProcessError, ValueError):  # none, or [N/A]
        return None
