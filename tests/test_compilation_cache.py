"""Programs kept from start to start: used, never trusted blindly, never in the way."""

import os
import subprocess
import sys

import jax
import pytest

from llmc_jax import compilation_cache
from llmc_jax.config import BadInput
from llmc_jax.training.logger import read_metrics
from llmc_jax.training.run_dir import RunDir
from llmc_jax.training.startup import Startup, process_age_s
from tests import tiny

PROGRAM = """
import sys, jax
from llmc_jax import config, train
from tests import tiny
config.MODELS["tiny"] = tiny.MODEL
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
train.main(tiny.config(train_data=sys.argv[1], val_data=sys.argv[2], output_dir=sys.argv[3],
                       compilation_cache=sys.argv[4], max_steps=3))
print("not in the cache:", sum("cache_misses" in name for name in events))
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def start(folder, name: str, cache) -> tuple[list, int, str, str]:
    """(losses, programs not in the cache, stdout, stderr) of a run in a process of its own."""
    data = tiny.write_data(folder)
    command = [sys.executable, "-c", PROGRAM, *data.values(), f"{folder}/{name}", str(cache)]
    env = os.environ | dict(JAX_ENABLE_COMPILATION_CACHE="true")
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    logged = read_metrics(RunDir(folder / name).metrics)
    losses = [metrics.get("train_loss", metrics.get("val_loss")) for metrics in logged]
    missed = int(done.stdout.rpartition("cache: ")[2])
    return losses, missed, done.stdout, done.stderr


def test_a_second_start_reads_programs_and_computes_the_same(folder):
    """And an entry that is cut short or changed is compiled again."""
    cache = folder / "cache"
    first, missed, said, _ = start(folder, "first", cache)
    assert f"cache    {cache}/jaxlib-" in said
    entries = sorted(cache.glob("*/*-cache"))
    assert missed == len(entries)
    assert len(entries) == len(list(cache.glob("*/*-cache.sha256"))) > 3
    step, evaluation = (
        next(entry for entry in entries if name in entry.name) for name in ("train_", "eval_")
    )
    step.write_bytes(step.read_bytes()[:-100])  # a write that was killed
    data = bytearray(evaluation.read_bytes())
    data[len(data) // 2] ^= 1
    evaluation.write_bytes(data)
    second, missed, said, noise = start(folder, "second", cache)
    assert missed == 2
    assert "cpu_aot_loader" not in noise and "Error reading" not in noise
    assert first == second
    assert "started in " in said and ", first step " in said


def test_an_entry_without_its_checksum_or_with_another_does_not_count(folder):
    for name in ("a-cache", "b-cache", "d-cache"):
        (folder / name).write_text(name)
    compilation_cache.seal(folder)
    (folder / "c-cache").write_text("half")  # by a process that was killed
    (folder / "b-cache").write_text("changed")
    (folder / "d-cache.sha256").write_bytes(b"\xff" * 64)  # a disk's damage, and no text
    compilation_cache.verify(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["a-cache", "a-cache.sha256"]


@pytest.fixture
def jax_config():
    """JAX's settings as a user has them, and as they were once the test is over."""
    names = (
        "jax_compilation_cache_dir", "jax_enable_compilation_cache", "jax_logging_level",
        "jax_compilation_cache_include_metadata_in_key",
        "jax_persistent_cache_min_compile_time_secs", "jax_persistent_cache_min_entry_size_bytes",
    )  # fmt: skip
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", None)
    yield jax.config
    for name, value in before.items():
        jax.config.update(name, value)


def test_which_folder_it_is(folder, monkeypatch, jax_config):
    monkeypatch.setenv("XDG_CACHE_HOME", f"{folder}/home")
    monkeypatch.setattr(compilation_cache.atexit, "register", lambda *_: None)
    auto = compilation_cache.enable("auto")
    assert auto.startswith(f"{folder}/home/llmc_jax/compiled/jaxlib-{jax.lib.__version__}-")
    assert jax_config.jax_compilation_cache_dir == auto
    # what JAX was told comes first
    jax_config.update("jax_compilation_cache_dir", "/told")
    assert compilation_cache.enable("auto") == "/told"
    # a kernel library that was built anew has a folder of its own
    monkeypatch.setattr(compilation_cache, "sha256_of", lambda path: "ab" * 32)
    assert compilation_cache.enable(f"{folder}/named") != f"{folder}/named/{auto[-27:]}"
    assert compilation_cache.enable("off") == "off" and not jax_config.jax_enable_compilation_cache


def test_a_folder_that_cannot_be_written(folder, monkeypatch, jax_config):
    (folder / "file").touch()
    with pytest.raises(BadInput, match=r"=.*file/x cannot be written: Not a directory"):
        compilation_cache.enable(f"{folder}/file/x")
    with pytest.raises(BadInput, match="--compilation_cache= names no folder"):
        compilation_cache.enable("")  # the folder one happens to be in
    monkeypatch.setenv("XDG_CACHE_HOME", f"{folder}/file")
    assert compilation_cache.enable("auto").startswith("off, ")
    assert jax_config.jax_compilation_cache_dir is None


def test_folders_nobody_adds_to_are_removed(folder, monkeypatch, jax_config):
    """But none that the user may have made."""
    monkeypatch.setattr(compilation_cache.atexit, "register", lambda *_: None)
    old, new, mixed = (f"jaxlib-0.{n}.1-0123456789ab" for n in range(3))
    users = ("jaxlib-0.3.1-build", "jaxlib-notes", "other", mixed)
    for name in (old, new, *users):
        (folder / name).mkdir()
    for name in ("jit_f-cache", "jit_f-cache.sha256", "jit_f-atime", ".lockfile"):
        (folder / old / name).touch()
    (folder / old / compilation_cache.AUTOTUNED).mkdir()
    (folder / mixed / "jit_f-cache").touch()
    (folder / mixed / "thesis.txt").touch()
    for name in (old, *users):
        os.utime(folder / name, (0, 0))
    ours = compilation_cache.enable(str(folder))
    left = {path.name for path in folder.iterdir()}
    assert left == {new, *users, os.path.basename(ours)}


def test_the_parts_of_a_start_add_up():
    startup = Startup()
    startup.part("files")
    startup.part("first step")
    startup.part("files")
    assert list(startup._parts) == ["imports", "files", "first step"]
    total = sum(startup._parts.values())
    assert total == pytest.approx(process_age_s(), abs=0.5)
    assert str(startup).startswith(f"started in {total:.1f} s: imports ")
