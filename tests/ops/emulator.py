"""The emulator of CUDA kernels, as tests steer it."""

import contextlib
import ctypes
import functools

from llmc_jax import ffi

# How the emulator orders threads and asynchronous work; see ffi/emulator/machine.h.
SCHEDULES = (0, 1, 2)


@functools.cache
def library() -> ctypes.CDLL:
    ffi.require("emulated", asked="emulated kernels")
    return ctypes.CDLL(str(ffi.library_path("emulated")))


@contextlib.contextmanager
def machine(schedule: int = 0, architecture: int = 90):
    """Emulated kernels run in the order `schedule` on the compute capability `architecture`."""
    library().llmc_emulator_schedule(schedule)
    library().llmc_emulator_architecture(architecture)
    try:
        yield
    finally:
        library().llmc_emulator_schedule(0)
        library().llmc_emulator_architecture(90)
