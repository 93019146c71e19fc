"""The CUDA kernels compiled, if none are installed; meanwhile PyTorch's compiler fills its cache.

nvcc needs no GPU and PyTorch's compiler little else, so the one hides in the other. Nothing is
timed on the GPU while this runs. The library is put beside the package's Python files, where git
ignores it; one that pip installed is taken as it is.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu_stages import results, stage
from benchmarks.gpu_stages.stage import Row, Skip
from llmc_jax import ffi

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build" / "gpu"
FILE = ffi.LIBRARIES["cuda"].file
OURS = ROOT / "llmc_jax" / FILE
CMAKE = [
    "cmake", "-S", str(ROOT / "ffi"), "-B", str(BUILD), "-DCMAKE_BUILD_TYPE=Release",
    "-DLLMC_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=90a-real",
    f"-DPython_EXECUTABLE={sys.executable}",
]  # fmt: skip
JOBS = str(os.cpu_count())
WARM_S = 65  # seconds after which PyTorch's compiler is not waited for


def rows() -> list[Row]:
    return [Row(FILE, "nvcc", build, 84)]


def build() -> dict:
    if results.platform() == "cpu":
        raise Skip("there is no GPU to build for")
    began = time.monotonic()
    warm = warm_up()
    try:
        result = compile_library()
        result["status"] = status()
        try:
            warm.wait(max(0.1, began + WARM_S - time.monotonic()))
            result["torch.compile"] = f"exit status {warm.returncode}"
        except subprocess.TimeoutExpired:
            result["torch.compile"] = f"not done after {WARM_S} s"
    finally:
        warm.kill()
    return result


def warm_up() -> subprocess.Popen:
    """One step of each PyTorch contestant, for the compiler's cache."""
    command = [sys.executable, "-m", "benchmarks.gpu_stages.torch_step"]
    return subprocess.Popen(command, cwd=ROOT, stdout=sys.stderr)


def compile_library() -> dict:
    path = ffi.library_path("cuda")
    if path and path != OURS:
        return dict(installed=str(path))
    began = time.monotonic()
    ninja = ["-G", "Ninja"] if shutil.which("ninja") else []
    for command in ([*CMAKE, *ninja], ["cmake", "--build", str(BUILD), "--parallel", JOBS,
                                       "--target", "llmc_cuda"]):  # fmt: skip
        run(command)
    built = next(BUILD.rglob(FILE))
    shutil.copy(built, OURS)
    return dict(seconds=round(time.monotonic() - began, 1))


def run(command: list[str]) -> None:
    """Raises RuntimeError with what the command said about errors."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    print(done.stdout, file=sys.stderr)
    if done.returncode:
        errors = [line for line in done.stdout.splitlines() if "error" in line.lower()]
        raise RuntimeError("; ".join(errors[:3]) or done.stdout[-300:])


def status() -> str:
    """ffi.status("gpu"), asked in another process: this one shall take no memory of the GPU."""
    code = "from llmc_jax import ffi; print(ffi.status('gpu'))"
    environment = dict(os.environ, XLA_PYTHON_CLIENT_PREALLOCATE="false")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
        check=False, stderr=sys.stderr,
    )  # fmt: skip
    said = done.stdout.strip().splitlines()
    return said[-1] if said else f"exit status {done.returncode}"


if __name__ == "__main__":
    stage.run("build", rows)
