"""Settings of all tests."""

import atexit
import gc
import os
import shutil
import tempfile
from pathlib import Path

# Programs that tests compile are no use to anybody later: no folder of the user's is written to.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import jax
import pytest

from llmc_jax import ffi
from tests.programs import Programs

FOLDER = "LLMC_TESTS_COMPILED"
# But many tests compile the same: all workers keep programs in one folder until the tests end. (One
# that is only half written yet is compiled once more, with a warning.)
if FOLDER not in os.environ:  # in the process that starts the workers
    os.environ[FOLDER] = tempfile.mkdtemp(prefix="compiled")
    atexit.register(shutil.rmtree, os.environ[FOLDER], ignore_errors=True)
jax.config.update("jax_enable_compilation_cache", True)
jax.config.update("jax_compilation_cache_dir", os.environ[FOLDER])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
# An array of another rank is broadcast only where the code says so.
jax.config.update("jax_numpy_rank_promotion", "raise")
# Longest first, as workers take whole files: at the end none waits long for another. (Those that
# compile the same, as ops/test_ops.py and ops/test_cuda.py, are not next to each other.)
FIRST = (
    "data/test_pipeline.py",  # which is short, but forks: before JAX has threads
    "ops/test_ops.py",
    "test_recipe.py",
    "training/test_step.py",
    "test_golden.py",
    "ops/test_cuda.py",
    "models/test_gpt2.py",
    "training/test_memory.py",
    "training/test_parallel.py",
    "test_train.py",
)
# The kernels are part of the install: without them the tests must fail, not pass over them.
ffi.require("cpu")


def pytest_collection_modifyitems(items):
    tests = Path(__file__).parent
    place = {tests / name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


def pytest_collection_finish():
    """Tracing makes many objects that live on: searches for garbage are fewer, past the imports."""
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.fixture(scope="session")
def run_program():
    """A function of NAME and flags: `python -m llmc_jax.NAME` in a process of its own."""
    names = ("train", "prepare", "generate", "checkpoint", "llmc_flags")
    programs = Programs(*[f"llmc_jax.{name}" for name in names])
    yield lambda name, *flags: programs.run(f"llmc_jax.{name}", *flags)
    programs.close()


@pytest.fixture
def use_isa():
    """A function that lets the CPU kernels use one instruction set until the test ends."""
    yield ffi.select_isa
    ffi.select_isa("auto")
