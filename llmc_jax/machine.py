"""The machine: a line on where a measurement was made, and what it lets a process have."""

import math
import os
import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path

GROUP, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def describe(*packages: str) -> str:
    """Commit, processor, cores, and the versions of Python, jax, jaxlib and `packages`."""
    versions = [f"{name} {version(name)}" for name in ("jax", "jaxlib", *packages)]
    return (
        f"commit {commit() or 'unknown'}, {processor()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {', '.join(versions)}"
    )


def version(package: str) -> str:
    """Of an installed package; this one may also be run from a clone that is not."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """What git calls the state of this clone; '' outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:  # there is no git
        return ""


def processor() -> str:
    """The processor by its own name, and which of the instruction sets that matter it has."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    known = [name for name in ("avx2", "avx512f", "amx_bf16") if name in flags]
    return f"{names[0] if names else platform.machine()} ({', '.join(known)})"


def memory_of_group() -> float:
    """Bytes that this process's control groups may have, as containers and batch systems set them;
    infinite without a limit (cgroups(7))."""
    limits = [math.inf]
    for line in GROUP.read_text().splitlines() if GROUP.exists() else []:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root, file = (
            (GROUPS / "memory", "memory.limit_in_bytes") if controllers else (GROUPS, "memory.max")
        )
        group = root / group.lstrip("/")  # in a container it may be the name outside
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError):  # no limit has a word for it: max
                limits.append(int((folder / file).read_text()))
    return min(limits)
