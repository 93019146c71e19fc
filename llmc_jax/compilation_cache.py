"""Compiled programs kept from start to start: JAX's persistent cache, where it is safe.

XLA's programs for a CPU are machine code, and its cache does not know when that fits no more: so
there is a folder for each jaxlib, kind of processor and build of the kernels. And what a killed
process left half written would be read again and again: so an entry counts only with its checksum,
written beside it once the program has run.
"""

import atexit
import hashlib
import os
import platform
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

import jax
import jaxlib

from llmc_jax import ffi
from llmc_jax.config import BadInput
from llmc_jax.files import sha256_of

ENTRY, CHECKSUM = "*-cache", ".sha256"  # JAX's names for entries; ours is that and an ending
FOLDER = re.compile(r"jaxlib-[^-]+-[0-9a-f]{12}")  # as _machine names them
# What JAX and we write into one: entries, when they were read last, and a lock; on GPUs a folder.
FILE = re.compile(r".*-cache(\.sha256)?|.*-atime|\.lockfile")
AUTOTUNED = "xla_gpu_per_fusion_autotune_cache_dir"
UNSET = (None, "NOTSET")
UNUSED_DAYS = 30  # folders that nothing was added to for so long are removed


def enable(choice: str, *, names: bool = False) -> str:
    """Use the folder that --compilation_cache=`choice` means; its path, or why there is none.

    choice: auto (a folder of ours in the user's cache, unless JAX was told of another), off, or a
    folder. names: a program whose instructions have other names is another program, for profiles.
    Raises BadInput where a folder that was named cannot be written, or none was named.
    """
    if not choice:
        raise BadInput("--compilation_cache= names no folder; give one, or auto or off.")
    jax.config.update("jax_compilation_cache_include_metadata_in_key", names)
    told = jax.config.jax_compilation_cache_dir
    if choice == "off" or not jax.config.jax_enable_compilation_cache:
        jax.config.update("jax_enable_compilation_cache", False)
        return "off"
    if choice == "auto" and told:
        return told
    root = _users_cache() if choice == "auto" else Path(choice)
    folder = root / _machine()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_unused(root, folder)
        verify(folder)
    except OSError as error:
        if choice != "auto":
            raise BadInput(
                f"--compilation_cache={choice} cannot be written: {error.strerror}; name another "
                f"folder, or off."
            ) from error
        return f"off, {folder} cannot be written: {error.strerror}"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # The many small programs of a start take long together.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if jax.default_backend() == "cpu" and jax.config.jax_logging_level in UNSET:
        # XLA says for each program that the processor lacks "prefer-no-gather", as an error; that
        # is no feature but a taste of LLVM's (jax#38445).
        jax.config.update("jax_logging_level", "CRITICAL")
    atexit.register(seal, folder)
    return str(folder)


def verify(folder: Path) -> None:
    """Remove the entries that are not what their checksum says, or have none."""
    for entry in folder.glob(ENTRY):
        checksum = _checksum(entry)
        if not checksum.exists() or checksum.read_bytes() != sha256_of(entry).encode():
            entry.unlink(missing_ok=True)
            checksum.unlink(missing_ok=True)


def seal(folder: Path) -> None:
    """Write the checksums of the entries that have none. What cannot be written is left out."""
    for entry in folder.glob(ENTRY):
        if not _checksum(entry).exists():
            with suppress(OSError):
                _checksum(entry).write_text(sha256_of(entry))


def _checksum(entry: Path) -> Path:
    return entry.with_name(entry.name + CHECKSUM)


def _users_cache() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "llmc_jax" / "compiled"


def _machine() -> str:
    """Names the folder: jaxlib, and letters that are others on another processor or build."""
    digest = hashlib.sha256(platform.machine().encode())
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
    facts = {
        line for line in lines if line.startswith(("flags", "Features", "model", "cpu family"))
    }
    for fact in sorted(facts):
        digest.update(fact.encode())
    for library in ("cpu", "cuda"):
        if path := ffi.library_path(library):
            digest.update(bytes.fromhex(sha256_of(path)))
    return f"jaxlib-{jaxlib.__version__}-{digest.hexdigest()[:12]}"


def _remove_unused(root: Path, ours: Path) -> None:
    """Remove the folders of other versions and machines that nobody adds to any more."""
    oldest = time.time() - UNUSED_DAYS * 24 * 3600
    for folder in root.glob("jaxlib-*"):
        with suppress(OSError):  # another process removes it too, or it may not be looked into
            if folder != ours and folder.stat().st_mtime < oldest and _is_cache(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_cache(folder: Path) -> bool:
    """Whether a folder is ours, by its name and by all that is in it: the user may have named a
    folder that has others too."""
    if folder.is_symlink() or not FOLDER.fullmatch(folder.name):
        return False
    return all(
        path.name == AUTOTUNED if path.is_dir() else FILE.fullmatch(path.name)
        for path in folder.iterdir()
    )
