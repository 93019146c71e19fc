"""compute-sanitizer on our kernels at tiny shapes; each array has memory of its own, so that an
access beyond it is seen."""

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

from benchmarks.gpu_stages import results, stage
from benchmarks.gpu_stages.stage import Row, Skip

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDERS = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
LIMIT_S = 45  # of a tool; what ran until then is written down
ERRORS = 99  # its exit status where it found some


def rows() -> list[Row]:
    return [
        Row("tiny shapes", tool, partial(check, tool), 60) for tool in ("memcheck", "synccheck")
    ]


def check(tool: str) -> dict:
    path = os.pathsep.join([os.environ.get("PATH", ""), *FOLDERS])
    if not (program := shutil.which("compute-sanitizer", path=path)):
        raise Skip("there is no compute-sanitizer")
    command = [
        program, "--tool", tool, "--error-exitcode", str(ERRORS), "--print-limit", "20",
        sys.executable, "-m", "benchmarks.gpu_stages.tiny", f"--platform={results.platform()}",
    ]  # fmt: skip
    # one cudaMalloc for each array
    environment = dict(
        os.environ,
        XLA_PYTHON_CLIENT_PREALLOCATE="false",
        XLA_PYTHON_CLIENT_ALLOCATOR="platform",
    )
    try:
        done = subprocess.run(
            command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, check=False, timeout=LIMIT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        said = (late.stdout or b"").decode(errors="replace")
        print(said, file=sys.stderr)
        ran = [line for line in said.splitlines() if line.startswith("ran ")]
        return dict(failed=f"not done after {LIMIT_S} s", ran=ran)
    print(done.stdout, file=sys.stderr)
    lines = done.stdout.splitlines()
    found = [line for line in lines if "ERROR SUMMARY" in line]
    ran = [line for line in lines if line.startswith("ran ")]
    if done.returncode:
        first = next((line for line in lines if "=========" in line and "COMPUTE" not in line), "")
        why = f"exit status {done.returncode}; {first} {' '.join(found)}"
        return dict(failed=why[:300], ran=ran)
    return dict(ok=True, found=found, ran=ran)


if __name__ == "__main__":
    stage.run("sanitizer", rows)
