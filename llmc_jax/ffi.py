"""Finds the kernel libraries, checks that they fit the installed jaxlib, and registers them.

A library lies in the package's folder and exports its handlers as plain C symbols named
llmc_<op>_<direction>, which are also the names XLA knows them by.
"""

import ctypes
import functools
import re
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

import llmc_jax
from llmc_jax.config import BadInput

REBUILD = "pip install --force-reinstall --no-deps -e ."

# Platform name of jax.devices() -> its library and the name XLA registers handlers under.
LIBRARIES = {"cpu": ("libllmc_cpu.so", "cpu")}

HANDLERS = (
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
    "llmc_classifier_forward",
    "llmc_classifier_losses",
    "llmc_adamw",
    "llmc_global_norm",
)


def available(platform: str) -> bool:
    """Whether the kernels of `platform` (cpu, gpu, tpu) are loaded and registered."""
    return not _load(platform)


def require(platform: str) -> None:
    """Raises BadInput with the reason when the kernels of `platform` are not loaded."""
    if reason := _load(platform):
        raise BadInput(f"--ops asks for ffi, but {reason}.")


def status(platform: str) -> str:
    """One phrase for the banner: which library is loaded, or why none is."""
    reason = _load(platform)
    return reason or f"{LIBRARIES[platform][0]} loaded, {_cpu().llmc_active_isa().decode()}"


def supported_isas() -> tuple[str, ...]:
    """The instruction sets of this machine that the CPU kernels exist for, best first."""
    return tuple(_cpu().llmc_supported_isas().decode().split(",")) if available("cpu") else ()


def select_isa(name: str) -> None:
    """Let the CPU kernels use the instruction set `name` from now on; auto: the best one.

    Raises BadInput where the machine or the library lacks it.
    """
    if name == "auto" and not available("cpu"):
        return
    if not available("cpu"):
        raise BadInput(f"--cpu_isa={name} needs the kernels of the CPU, but {_load('cpu')}.")
    if not _cpu().llmc_select_isa(name.encode()):
        raise BadInput(
            f"--cpu_isa={name}: this machine has {', '.join(supported_isas())}; "
            "write one of them, or auto for the best."
        )


def trim_memory() -> None:
    """Give freed memory back to the operating system: what initialisation and compilation left.

    Does nothing without the kernels of the CPU.
    """
    if available("cpu"):
        _cpu().llmc_trim_memory()


def call(target: str, results: list, aliases: dict[int, int] | None = None) -> Callable:
    """A function of arrays and attributes that runs the handler `target`.

    results: shape and dtype of each result. aliases: input index -> index of the result that
    takes its place in memory. Python numbers become the attribute types the handlers bind:
    float32 and int64, and arrays of float32 from tuples.
    """
    run = jax.ffi.ffi_call(target, results, input_output_aliases=aliases)

    def typed(value):
        if isinstance(value, tuple):
            return np.array(value, np.float32)
        return np.float32(value) if isinstance(value, float) else np.int64(value)

    def with_attributes(*arrays, **static):
        return run(*arrays, **{name: typed(value) for name, value in static.items()})

    return with_attributes


@functools.cache
def _load(platform: str) -> str:
    """Load and register the library of `platform`; '' or the reason it was not."""
    if platform not in LIBRARIES:
        return f"there are no kernels for {platform}"
    path = _path(platform)
    if path is None:
        return f"{LIBRARIES[platform][0]} was not built (build it: {REBUILD})"
    return register(path, LIBRARIES[platform][1])


def _path(platform: str) -> Path | None:
    """Where the library of `platform` lies; None if it was not built."""
    # An editable install keeps Python files and libraries in different folders of the package.
    paths = [Path(folder) / LIBRARIES[platform][0] for folder in llmc_jax.__path__]
    return next((path for path in paths if path.exists()), None)


@functools.cache
def _cpu() -> ctypes.CDLL:
    """The loaded library of the CPU, for its plain C functions."""
    library = ctypes.CDLL(str(_path("cpu")))
    library.llmc_active_isa.restype = ctypes.c_char_p
    library.llmc_supported_isas.restype = ctypes.c_char_p
    return library


def register(path: Path, xla_platform: str) -> str:
    """Register the handlers of the library at `path`; '' or the reason it was refused.

    A library built with headers newer than the installed jaxlib must not be registered at all:
    it would keep JAX's backend itself from starting.
    """
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return f"{path.name} cannot be loaded: {error}"
    built = library.llmc_ffi_api_version()
    installed = _installed_api_version()
    if built > installed:
        return (
            f"{path.name} was built for XLA FFI 0.{built} and the installed jaxlib speaks "
            f"0.{installed} (rebuild it: {REBUILD})"
        )
    for handler in HANDLERS:
        capsule = jax.ffi.pycapsule(getattr(library, handler))
        jax.ffi.register_ffi_target(handler, capsule, platform=xla_platform)
    return ""


def _installed_api_version() -> int:
    """Minor version of XLA's FFI API, from the header that the installed jaxlib carries."""
    header = Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    return int(re.search(r"#define XLA_FFI_API_MINOR (\d+)", header.read_text()).group(1))
