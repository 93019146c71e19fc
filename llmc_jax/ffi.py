"""Finds the kernel libraries, checks that they fit the installed jaxlib, and registers them.

A library lies in the package's folder and exports its handlers as plain C symbols named
llmc_<op>_<direction> (of CUDA kernels llmc_cuda_<op>_<direction>), which are also the names XLA
knows them by.
"""

import ctypes
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import llmc_jax
from llmc_jax.config import BadInput

REBUILD = "pip install --force-reinstall --no-deps -e ."
_BUILD = {
    "cpu": REBUILD,
    "cuda": f"{REBUILD} -C cmake.define.LLMC_CUDA=ON",  # fails, and says so, without an nvcc
    "emulated": f"{REBUILD} -C cmake.define.LLMC_EMULATED=ON",
}

# What handlers take and give, numbered: a library of another number is of another commit.
INTERFACE = 5

CPU_HANDLERS = (
    "llmc_encoder_forward",
    "llmc_encoder_backward",
    "llmc_layernorm_forward",
    "llmc_layernorm_backward",
    "llmc_residual_layernorm_forward",
    "llmc_residual_layernorm_backward",
    "llmc_matmul_forward",
    "llmc_matmul_backward",
    "llmc_mlp_forward",
    "llmc_mlp_backward",
    "llmc_attention_forward",
    "llmc_attention_backward",
    "llmc_cached_attention",
    "llmc_classifier_forward",
    "llmc_classifier_losses",
    "llmc_logits",
    "llmc_adamw",
    "llmc_global_norm",
    "llmc_uninitialized",
)

CUDA_HANDLERS = (
    "llmc_cuda_adamw",
    "llmc_cuda_attention_forward",
    "llmc_cuda_attention_backward",
    "llmc_cuda_classifier_forward",
    "llmc_cuda_classifier_losses",
    "llmc_cuda_encoder_backward",
    "llmc_cuda_gelu_backward",
    "llmc_cuda_layernorm_backward",
    "llmc_cuda_residual_layernorm_forward",
    "llmc_cuda_residual_layernorm_backward",
    "llmc_cuda_global_norm",
)


class Library(NamedTuple):
    """A library of handlers."""

    file: str
    xla_platform: str  # what XLA registers its handlers under
    handlers: tuple[str, ...]
    texts: tuple[str, ...] = ()  # its functions that give one


LIBRARIES = {
    "cpu": Library(
        "libllmc_cpu.so", "cpu", CPU_HANDLERS, ("llmc_active_isa", "llmc_supported_isas")
    ),
    "cuda": Library(
        "libllmc_cuda.so", "CUDA", CUDA_HANDLERS, ("llmc_cuda_build", "llmc_cuda_load")
    ),
    # the same kernels, run on the CPU for tests: see ffi/emulator
    "emulated": Library("libllmc_emulated.so", "cpu", CUDA_HANDLERS),
}

# Platform name of jax.devices() -> the library of its kernels.
LIBRARY_OF = {"cpu": "cpu", "gpu": "cuda"}


def available(library: str) -> bool:
    """Whether the kernels of `library` (cpu, cuda, emulated) are loaded and registered."""
    return not _load(library)[0]


def require(library: str, asked: str = "ffi") -> None:
    """Raises BadInput with the reason when `library`, which --ops=`asked` needs, is not loaded."""
    if reason := _load(library)[0]:
        raise BadInput(f"--ops asks for {asked}, but {reason}.")


def status(platform: str) -> str:
    """One phrase for the banner: which library of `platform` is loaded, or why none is."""
    if platform not in LIBRARY_OF:
        return f"there are no kernels for {platform}"
    library = LIBRARY_OF[platform]
    reason, loaded = _load(library)
    if reason:
        return reason
    detail = active_isa() if library == "cpu" else loaded.llmc_cuda_build().decode()
    return f"{LIBRARIES[library].file} loaded, {detail}"


def supported_isas() -> tuple[str, ...]:
    """The instruction sets of this machine that the CPU kernels exist for, best first."""
    _, cpu = _load("cpu")
    return tuple(cpu.llmc_supported_isas().decode().split(",")) if cpu else ()


def active_isa() -> str:
    """The instruction set in use; empty without the kernels of the CPU."""
    _, cpu = _load("cpu")
    return cpu.llmc_active_isa().decode() if cpu else ""


def select_isa(name: str) -> None:
    """Let the CPU kernels use the instruction set `name` from now on; auto: the best one.

    Raises BadInput where the machine or the library lacks it.
    """
    reason, cpu = _load("cpu")
    if reason and name == "auto":
        return
    if reason:
        raise BadInput(f"--cpu_isa={name} needs the kernels of the CPU, but {reason}.")
    if not cpu.llmc_select_isa(name.encode()):
        raise BadInput(
            f"--cpu_isa={name}: this machine has {', '.join(supported_isas())}; "
            "write one of them, or auto for the best."
        )


def trim_memory() -> None:
    """Give memory back to the operating system: what initialisation and compilation left.

    JAX forgets what it traced, which is 25 MiB of GPT-2's step; what is compiled stays with who
    holds it. Nothing is given back without the kernels of the CPU.
    """
    jax.clear_caches()
    _, cpu = _load("cpu")
    if cpu:
        cpu.llmc_trim_memory()


def call(target: str, results: list, aliases: dict[int, int] | None = None) -> Callable:
    """A function of arrays and attributes that runs the handler `target`.

    results: shape and dtype of each result. aliases: input index -> index of the result that
    takes its place in memory. Python numbers become the attribute types the handlers bind:
    float32 and int64, and arrays of them from tuples.
    """
    run = jax.ffi.ffi_call(target, results, input_output_aliases=aliases)

    def typed(value):
        if isinstance(value, tuple):
            return np.array([typed(one) for one in value])
        return np.float32(value) if isinstance(value, float) else np.int64(value)

    def with_attributes(*arrays, **static):
        return run(*arrays, **{name: typed(value) for name, value in static.items()})

    return with_attributes


@functools.cache
def _load(library: str) -> tuple[str, ctypes.CDLL | None]:
    """Load and register `library`: ('', it), or (the reason why it is not used, None)."""
    path = library_path(library)
    if path is None:
        return f"{LIBRARIES[library].file} was not built (build it: {_BUILD[library]})", None
    return register(path, LIBRARIES[library])


def library_path(library: str) -> Path | None:
    """Where `library` lies; None if it was not built."""
    # An editable install keeps Python files and libraries in different folders of the package.
    paths = [Path(folder) / LIBRARIES[library].file for folder in llmc_jax.__path__]
    return next((path for path in paths if path.exists()), None)


def register(path: Path, kind: Library) -> tuple[str, ctypes.CDLL | None]:
    """Register the handlers of the library at `path`: like _load.

    A library built with headers newer than the installed jaxlib must not be registered at all:
    it would keep JAX's backend itself from starting.
    """
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return f"{path.name} cannot be loaded: {error}", None
    if reason := _misfit(library, kind):
        return f"{path.name} {reason}", None
    for name in kind.texts:
        getattr(library, name).restype = ctypes.c_char_p
    if kind.xla_platform == "CUDA" and (reason := _load_onto(library, jax.local_devices())):
        return f"{path.name} {reason}", None
    for handler in kind.handlers:
        capsule = jax.ffi.pycapsule(getattr(library, handler))
        jax.ffi.register_ffi_target(handler, capsule, platform=kind.xla_platform)
    return "", library


def _misfit(library: ctypes.CDLL, kind: Library) -> str:
    """What keeps `library` from being used with this jaxlib and this package; '' if nothing."""
    built = library.llmc_ffi_api_version()
    installed = _installed_api_version()
    if built > installed:
        return (
            f"was built for XLA FFI 0.{built} and the installed jaxlib speaks 0.{installed} "
            f"(rebuild it: {REBUILD})"
        )
    interface = library.llmc_interface() if hasattr(library, "llmc_interface") else 0
    missing = [name for name in kind.handlers + kind.texts if not hasattr(library, name)]
    if missing or interface != INTERFACE:
        lacks = f", it lacks {missing[0]}" if missing else ""
        return f"was built from another commit{lacks} (rebuild it: {REBUILD})"
    return ""


def _load_onto(library: ctypes.CDLL, devices: list) -> str:
    """Load the kernels of `library` onto every GPU of `devices`; '' or why they do not run on one.

    Where CUDA did that by itself, at their first launches, a step could hang: see load.cu.
    """
    for device in devices:
        if device.platform != "gpu":  # without a GPU the library is still there to lower for one
            continue
        if error := library.llmc_cuda_load(device.local_hardware_id):
            return (
                f"does not run on {device.device_kind}: {error.decode()} "
                f"(for an A100 or newer, rebuild it: {_BUILD['cuda']})"
            )
    return ""


def _installed_api_version() -> int:
    """Minor version of XLA's FFI API, from the header that the installed jaxlib carries."""
    header = Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    return int(re.search(r"#define XLA_FFI_API_MINOR (\d+)", header.read_text()).group(1))
