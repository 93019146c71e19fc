"""The CUDA library as nvcc built it, without a GPU: its exports and its code."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import jax
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
    "hopper::Backward<": ("HGMMA", "UTMALDG", "REDG"),
    "hopper::RoundDq<": ("LDG.E.128", "UTMASTG"),
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


@pytest.mark.parametrize("architecture", sass.DISASSEMBLED)
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


def gpu(kind: str, number: int, capability: str = "8.0") -> SimpleNamespace:
    """What JAX says of a GPU; its `id` counts those of all processes."""
    return SimpleNamespace(
        platform="gpu",
        device_kind=kind,
        local_hardware_id=number,
        id=10 + number,
        compute_capability=capability,
    )


def test_a_gpu_it_does_not_run_on_is_why_it_is_not_registered(monkeypatch):
    if not (path := ffi.library_path("cuda")):
        pytest.skip(ffi.status("gpu"))
    monkeypatch.setattr(jax, "local_devices", lambda: [gpu("Tesla T4", 99)])  # nobody's number
    monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda *_, **__: pytest.fail("registered"))
    reason, library = ffi.register(path, ffi.LIBRARIES["cuda"])
    assert re.match(r"libllmc_cuda\.so does not run on Tesla T4: .*(CUDA|device)", reason)
    assert f"rebuild it: {ffi.REBUILD} -C cmake.define.LLMC_CUDA=ON" in reason and library is None


def test_kernels_are_loaded_onto_each_gpu_of_this_process_by_its_number_here():
    asked = []
    library = SimpleNamespace(llmc_cuda_load=asked.append)
    gpus = [gpu("H100", 2), gpu("H100", 3)]
    assert ffi._load_onto(library, [*jax.devices("cpu"), *gpus]) == ""
    assert asked == [2, 3]


def test_the_gpu_that_refuses_is_named_with_what_cuda_says():
    library = SimpleNamespace(llmc_cuda_load=lambda number: b"no kernel image" if number else None)
    reason = ffi._load_onto(library, [gpu("A100", 0), gpu("AMD Instinct MI250", 1, "gfx90a")])
    assert reason.startswith("does not run on AMD Instinct MI250: no kernel image (")


def test_every_kernel_is_among_those_that_are_loaded(kernels):
    """They are known by being launched; what is compiled is more where one is forgotten."""
    dump = sass.dump(ffi.library_path("cuda"), "-res-usage")
    compiled = sum(line.lstrip().startswith("Function ") for line in dump)
    _, library = ffi._load("cuda")
    assert library.llmc_cuda_kernels() * len(kernels) == compiled
