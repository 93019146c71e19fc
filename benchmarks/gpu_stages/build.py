"""The CUDA kernels compiled, if none are installed; meanwhile PyTorch's compiler fills its cache.

nvcc needs no GPU and PyTorch's compiler little else, so the one hides in the other. Nothing is
timed on the GPU while this runs. The library is put beside the package's Python files, where git
ignores it, in the place of one that came along there and that serves until then; one that pip
installed is taken as it is.
"""

import functools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

from benchmarks.gpu_stages import results, stage
from benchmarks.gpu_stages.stage import Row, Skip, need
from llmc_jax import ffi

BUILD = stage.ROOT / "build" / "gpu"
FILE = ffi.LIBRARIES["cuda"].file
OURS = stage.ROOT / "llmc_jax" / FILE
CMAKE = [
    "cmake", "-S", str(stage.ROOT / "ffi"), "-B", str(BUILD), "-DCMAKE_BUILD_TYPE=Release",
    "-DLLMC_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=90a-real",
    f"-DPython_EXECUTABLE={sys.executable}",
]  # fmt: skip
JOBS = str(os.cpu_count())
STATUS_S = 12  # kept back to ask for the status and write it down
WARM_S = 65  # seconds of the stage after which PyTorch's compiler is not waited for


def rows() -> list[Row]:
    began = time.monotonic()
    warm = functools.cache(start_warm_up)
    return [
        Row(FILE, "nvcc", partial(build, warm), 105),
        Row("compiler's cache", "torch.compile", partial(wait_for, warm, began + WARM_S), 105),
    ]


def build(warm: Callable[[], subprocess.Popen]) -> dict:
    if results.platform() == "cpu":
        raise Skip("there is no GPU to build for")
    warm()
    try:
        result = compile_library()
    except (RuntimeError, OSError) as error:
        result = dict(failed=str(error))
    return result | dict(status=status())


def start_warm_up() -> subprocess.Popen:
    """One step of each PyTorch contestant, for the compiler's cache. nvcc goes before it: without
    the library there is nothing of ours to measure."""
    command = ["nice", "-n", "10", sys.executable, "-m", "benchmarks.gpu_stages.torch_step"]
    return subprocess.Popen(command, cwd=stage.ROOT, stdout=sys.stderr)


def wait_for(warm: Callable[[], subprocess.Popen], end: float) -> dict:
    """The stage's end stops what `warm` started, and the processes of that."""
    if results.platform() == "cpu":
        raise Skip("there is no GPU to compile for")
    need("torch")
    began = time.monotonic()
    try:
        status = warm().wait(max(0.1, min(end - began, stage.seconds_left() - 2)))
    except subprocess.TimeoutExpired:
        raise Skip("it was not waited for any longer") from None
    return dict(exit_status=status, waited_s=round(time.monotonic() - began, 1))


def compile_library() -> dict:
    """Raises RuntimeError where that fails, with the reason."""
    path = ffi.library_path("cuda")
    if path and path != OURS:
        return dict(installed=str(path))
    began = time.monotonic()
    ninja = ["-G", "Ninja"] if shutil.which("ninja") else []
    for command in ([*CMAKE, *ninja], ["cmake", "--build", str(BUILD), "--parallel", JOBS,
                                       "--target", "llmc_cuda"]):  # fmt: skip
        run(command)
    whole = OURS.with_suffix(".new.so")
    shutil.copy(next(BUILD.rglob(FILE)), whole)
    whole.replace(OURS)  # at no time is there a half
    return dict(seconds=round(time.monotonic() - began, 1))


def run(command: list[str]) -> None:
    """Raises RuntimeError with what the command said about errors."""
    left = stage.seconds_left() - STATUS_S
    returned, said = stage.call(command, "nvcc", left)
    if returned is None:
        raise RuntimeError(f"not done after {left:.0f} s")
    if returned:
        errors = [line for line in said.splitlines() if "error" in line.lower()]
        raise RuntimeError("; ".join(errors[:3]) or said[-300:])


def status() -> str:
    """ffi.status("gpu"), asked in another process: this one shall take no memory of the GPU."""
    code = "from llmc_jax import ffi; print(ffi.status('gpu'))"
    environment = dict(os.environ, XLA_PYTHON_CLIENT_PREALLOCATE="false")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=stage.ROOT, env=environment, stdout=subprocess.PIPE,
        text=True, check=False, stderr=sys.stderr,
    )  # fmt: skip
    said = done.stdout.strip().splitlines()
    return said[-1] if said else f"exit status {done.returncode}"


if __name__ == "__main__":
    stage.run("build", rows)
