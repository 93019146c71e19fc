"""One line on where a measurement was made."""

import os
import platform
import subprocess
from pathlib import Path

import jax
import jaxlib


def describe() -> str:
    """Commit, processor, cores, and versions."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return (
        f"commit {commit or 'unknown'}, {_cpu()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, jax {jax.__version__}, jaxlib {jaxlib.__version__}"
    )


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    known = [name for name in ("avx2", "avx512f", "amx_bf16") if name in flags]
    return f"{names[0] if names else platform.machine()} ({', '.join(known)})"
