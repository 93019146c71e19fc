"""The CUDA library as nvcc built it, without a GPU: its exports and its code."""

import json

import pytest

from llmc_jax import ffi
from tests import sass

# Kernels, by how their names begin, and what must be in their code on an architecture.
WANTED = {
    "sm_80": {"SumOfSquares": ("LDG.E.128",)},
    "sm_90a": {"SumOfSquares": ("LDG.E.128",)},
}


@pytest.fixture(scope="module")
def kernels():
    if not ffi.available("cuda"):
        pytest.skip(ffi.status("gpu"))
    if not sass.cuobjdump():
        pytest.skip("there is no cuobjdump with nvdisasm (pip install -e .[dev])")
    return sass.read(ffi._path("cuda"))


def test_it_loads_without_a_gpu_and_says_what_it_was_built_for():
    if ffi._path("cuda") is None:
        pytest.skip(ffi.status("gpu"))
    assert ffi.status("gpu").startswith("libllmc_cuda.so loaded, nvcc 1")
    library = ffi._library("cuda")
    assert all(hasattr(library, handler) for handler in ffi.CUDA_HANDLERS)


def test_no_kernel_puts_registers_into_memory(kernels):
    for architecture, compiled in kernels.items():
        for name, counts in compiled.items():
            where = f"{name} on {architecture}"
            assert counts["stack"] == counts["LDL"] == counts["STL"] == 0, where


def test_kernels_use_the_instructions_they_are_written_for(kernels):
    for architecture, wanted in WANTED.items():
        for prefix, opcodes in wanted.items():
            found = [k for name, k in kernels[architecture].items() if name.startswith(prefix)]
            assert found, f"no kernel {prefix} on {architecture}"
            for opcode in opcodes:
                assert all(counts[opcode] for counts in found), (architecture, prefix, opcode)


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
