"""compute-sanitizer on our kernels at tiny shapes; each array has memory of its own, temporaries
too, so that an access beyond it is seen."""

import os
import shutil
import sys
from functools import partial

from benchmarks.gpu_stages import results, stage
from benchmarks.gpu_stages.stage import Row, Skip

FOLDERS = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
# tool -> its share of the time left; what ran until then is written down
TOOLS = {"memcheck": 0.5, "racecheck": 0.6, "synccheck": 1}
# racecheck knows nothing of what orders TMA's copies, by which Hopper's attention goes.
LEFT_OUT = {"racecheck": "attention"}
ERRORS = 99  # its exit status where it found some


def rows() -> list[Row]:
    return [
        Row("tiny shapes", tool, partial(check, tool, share), 90) for tool, share in TOOLS.items()
    ]


def check(tool: str, share: float) -> dict:
    path = os.pathsep.join([os.environ.get("PATH", ""), *FOLDERS])
    if not (program := shutil.which("compute-sanitizer", path=path)):
        raise Skip("there is no compute-sanitizer")
    command = [
        program, "--tool", tool, "--error-exitcode", str(ERRORS), "--print-limit", "20",
        sys.executable, "-m", "benchmarks.gpu_stages.tiny", f"--platform={results.platform()}",
        "--small", f"--leave_out={LEFT_OUT.get(tool, '')}",
    ]  # fmt: skip
    # one cudaMalloc for each array; without the flag there is one for all temporaries of a program
    environment = dict(
        os.environ,
        XLA_FLAGS=f"{os.environ.get('XLA_FLAGS', '')} --xla_multiheap_size_constraint_per_heap=1",
        XLA_PYTHON_CLIENT_PREALLOCATE="false",
        XLA_PYTHON_CLIENT_ALLOCATOR="platform",
    )
    limit = share * (stage.seconds_left() - 3)  # to write it down
    status, said = stage.call(command, tool, limit, env=environment)
    lines = said.splitlines()
    ran = [line for line in lines if line.startswith("ran ")]
    found = [line for line in lines if "ERROR SUMMARY" in line]
    if status == 0:
        return dict(ok=True, found=found, ran=ran)
    how = f"not done after {limit:.0f} s" if status is None else f"exit status {status}"
    first = next((line for line in lines if "=========" in line and "COMPUTE" not in line), "")
    return dict(failed=f"{how}; {first} {' '.join(found)}"[:300], ran=ran)


if __name__ == "__main__":
    stage.run("sanitizer", rows)
