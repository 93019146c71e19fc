"""How long a run takes from the command to its first step, part by part."""

import os
import time
from pathlib import Path


class Startup:
    """A clock that began with the process, read where a part of the start ends."""

    def __init__(self):
        self._last = time.perf_counter()
        self._parts = {"imports": process_age_s()}

    def part(self, name: str) -> None:
        """What was done since the part before is `name`."""
        now = time.perf_counter()
        self._parts[name] = self._parts.get(name, 0) + now - self._last
        self._last = now

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self._parts.items())
        return f"started in {sum(self._parts.values()):.1f} s: {parts}"


def process_age_s() -> float:
    """Seconds since this process began, to a hundredth; where Linux does not say so, the time of
    its processors."""
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return time.process_time()
    # Behind the name, which is in parentheses and may hold anything: field 22 is the start.
    ticks = int(stat.read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
