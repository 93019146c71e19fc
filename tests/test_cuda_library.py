"""The CUDA library as nvcc built it, without a GPU: its exports and its code."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from llmc_jax import ffi
from tests import sass

FFI = Path(__file__).parent.parent / "ffi"

# How the name of a kernel begins -> what must be in its code.
BY_16_BYTES = ("LDG.E.128", "STG.E.128")
WANTED = {
    "attention::Forward<": ("HMMA", "LDSM", "LDGSTS", "STG.E.128"),
    "attention::KeysBackward<": ("HMMA", "LDSM", "LDGSTS", "STG.E.128"),
    "attention::QueriesBackward<": ("HMMA", "LDSM", "LDGSTS", "STG.E.128"),
    "attention::Delta<": BY_16_BYTES,
    "attention::RoundDq<": BY_16_BYTES,
    "CrossEntropy<__nv_bfloat16, Vec<__nv_bfloat16>, true>": ("LDGSTS", "STG.E.128"),
    "CrossEntropy<float, Vec<float>, true>": ("LDGSTS", "STG.E.128"),
    "CrossEntropyLosses<__nv_bfloat16, Vec<": ("LDG.E.128",),
    "AddRuns<Vec<": BY_16_BYTES,
    "AddBatch<Vec<": BY_16_BYTES,
    "ResidualLayernormForwardKernel<Vec<": BY_16_BYTES,
    "LayernormBackwardKernel<Vec<": BY_16_BYTES,
    "GeluBackwardKernel<Vec<": BY_16_BYTES,
    "AdamWKernel<": BY_16_BYTES,
    "SumOfSquares": ("LDG.E.128",),
}
WANTED_OF_HOPPER = {
    "hopper::Forward<": ("HGMMA", "UTMALDG", "UTMASTG"),
    "hopper::Backward<": ("HGMMA", "UTMALDG"),
}


@pytest.fixture(scope="module")
def kernels():
    if not ffi.available("cuda"):
        pytest.skip(ffi.status("gpu"))
    if not sass.cuobjdump():
        pytest.skip("there is no cuobjdump with nvdisasm (pip install -e .[dev])")
    return sass.read(ffi.library_path("cuda"))


def test_it_loads_without_a_gpu_and_says_what_it_was_built_for():
    if ffi.library_path("cuda") is None:
        pytest.skip(ffi.status("gpu"))
    assert ffi.status("gpu").startswith("libllmc_cuda.so loaded, nvcc 1")
    _, library = ffi._load("cuda")
    assert all(hasattr(library, handler) for handler in ffi.CUDA_HANDLERS)


def test_no_kernel_puts_registers_into_memory(kernels):
    for architecture, compiled in kernels.items():
        for name, counts in compiled.items():
            where = f"{name} on {architecture}"
            if architecture == "sm_120":  # for which ptxas wants a few more registers
                assert counts["stack"] <= 32, where
            else:
                assert counts["stack"] == counts["LDL"] == counts["STL"] == 0, where


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a", "sm_100", "sm_120"])
def test_kernels_use_the_instructions_they_are_written_for(kernels, architecture):
    wanted = WANTED | (WANTED_OF_HOPPER if architecture == "sm_90a" else {})
    for prefix, opcodes in wanted.items():
        found = [k for name, k in kernels[architecture].items() if name.startswith(prefix)]
        assert found, f"no kernel {prefix} on {architecture}"
        for opcode in opcodes:
            assert all(counts[opcode] for counts in found), (prefix, opcode)


@pytest.mark.parametrize("T", ["__half", "__nv_bfloat16"])
def test_a_warpgroup_makes_exponentials_beside_its_products(kernels, T):
    """Two for each pair of the 64 x 128 scores, but ptxas likes to wait for the products first."""
    assert kernels["sm_90a"][f"hopper::Forward<{T}, 64>"][sass.BESIDE] >= 64


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_the_compiler_keeps_products_of_warpgroups_asynchronous(direction, tmp_path):
    """Where it cannot, ptxas makes them one after another and says so in a remark, C7510 and its
    like, which is no warning."""
    if not (nvcc := shutil.which("nvcc")):
        pytest.skip("there is no nvcc")
    options = ["-std=c++17", "-O3", "-gencode=arch=compute_90a,code=sm_90a", "-Xptxas=-v"]
    files = [f"-I{FFI}", FFI / "cuda" / f"attention_hopper_{direction}.cu", "-o", tmp_path / "x"]
    result = subprocess.run(
        [nvcc, *options, "-cubin", *files], capture_output=True, text=True, check=True
    )
    assert "(C75" not in result.stdout + result.stderr


def test_the_code_is_what_was_committed(kernels):
    """For the compiler that the numbers were recorded with; `python -m tests.sass` records."""
    golden = json.loads(sass.GOLDEN.read_text())
    if golden["build"] != ffi.status("gpu"):
        pytest.skip(f"recorded with {golden['build']}; this is {ffi.status('gpu')}")
    assert kernels == golden["kernels"]


@pytest.mark.parametrize(("capability", "fits"), [("7.5", False), ("8.0", True), ("12.0", True)])
def test_an_old_gpu_is_told_what_is_needed(capability, fits):
    class Device:
        compute_capability = capability
        device_kind = "Tesla"

    reason = ffi._unfit_gpu([Device()])
    assert reason == "" if fits else "needs compute capability 8.0 (A100) or newer" in reason
