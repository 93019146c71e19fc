"""The command line as a user meets it: help, and bad input in one sentence.

Each case runs the program as a process: exit status, no traceback, nothing written.
"""

import os
import struct
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from llmc_jax import program
from llmc_jax.config import TrainConfig
from llmc_jax.data.tokens import write_shard

CONFIGS = Path(__file__).parent.parent / "configs"
HEADER = struct.pack("<256i", 20240520, 1, 1000, *[0] * 253)


@pytest.mark.parametrize(
    ("program", "flags"),
    [
        ("train", ["--train_data=/nowhere.bin"]),
        ("train", ["--help"]),
        ("prepare", ["--workers=two"]),
        ("generate", ["--run=/nowhere"]),
    ],
)
def test_programs_do_as_they_do_from_a_shell(run_program, program, flags):
    """In processes that begin with the interpreter."""
    command = [sys.executable, "-m", f"llmc_jax.{program}", *flags]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert "--help" in flags or (result.returncode == 2 and result.stderr.startswith("error: "))
    copied = run_program(program, *flags)
    for what in ("returncode", "stdout", "stderr"):
        assert getattr(result, what) == getattr(copied, what)


def bad_training_flags(folder) -> dict[str, tuple[list[str], str]]:
    """name -> (flags after the good ones, a part of the sentence)."""
    good = folder / "good.bin"
    out = folder / "taken"
    return {
        "missing shard": (["--train_data=/nowhere.bin"], "--train_data=/nowhere.bin matches no"),
        "empty glob": ([f"--val_data={folder}/*.none"], "matches no file"),
        "no data": (["--train_data="], "--train_data is needed"),
        "truncated": ([f"--train_data={folder}/short.bin"], "short.bin is truncated"),
        "folder": ([f"--train_data={folder}"], "cannot be read: Is a directory"),
        "magic": ([f"--train_data={folder}/magic.bin"], "magic.bin is not a token shard"),
        "token": ([f"--train_data={folder}/token.bin"], "token.bin has token 50257"),
        "total": (["--total_batch_size=100"], "--total_batch_size=100 is not a multiple of the 32"),
        "T": (["--sequence_length=1025"], "--sequence_length=1025 is longer than --model=d6"),
        "model": (["--model=d7"], "--model=d7 is unknown; use one of d6, d12"),
        "c5140": (["--model=gpt3:c5140"], "5140 channels do not divide into heads of 128"),
        "flag": (["--no_such_flag=1"], "there is no flag --no_such_flag; see --help"),
        "value": (["--lr_schedule=cosin"], "value should be one of <cosine|linear|constant|wsd>"),
        "number": (["--batch_size=0"], "flag --batch_size=0"),
        "no number": (["--grad_clip=nan"], "--grad_clip=nan is no number; give one."),
        "letter": (
            ["-i", "data"],
            "-i is llm.c's letter for --train_data (python -m llmc_jax.llmc_",
        ),
        "word": (["quickstart"], "'quickstart' is not a flag"),
        "op": (["--ops=atention=ffi"], "there is no op 'atention'; the ops are encoder"),
        "choice": (["--ops=matmul=cudnn"], "matmul has no implementation 'cudnn' on this platform"),
        "output": ([f"--output_dir={out}"], "already holds a run; add --resume"),
        "no output": (["--checkpoint_every=1"], "--checkpoint_every needs --output_dir"),
        "none to keep": (
            ["--keep_checkpoints=3", f"--output_dir={folder}/new"],
            "--keep_checkpoints=3 has none to keep; say when they are saved",
        ),
        "process": (
            ["--process_id=7", "--num_processes=1"],
            "--process_id=7 must be below --num_processes=1.",
        ),
        "unwritable": ([f"--output_dir={good}/run"], "cannot be made"),
        "flagfile": (["--flagfile=/nowhere.flags"], "--flagfile=/nowhere.flags cannot be read: No"),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_shard(folder / "good.bin", np.arange(1000))
    write_shard(folder / "token.bin", np.full(1000, 50257))
    (folder / "short.bin").write_bytes(HEADER + bytes(100))
    (folder / "magic.bin").write_bytes(bytes(3024))
    (folder / "taken").mkdir()
    (folder / "taken" / "main.log").write_text("s:0 tel:11.0000\n")
    return folder


@pytest.fixture(scope="module")
def results(run_program, folder):
    """All cases; and the files before and after."""
    good = [
        f"--train_data={folder}/good.bin", f"--val_data={folder}/good.bin", "--model=d6",
        "--batch_size=2", "--sequence_length=16", "--val_every=1", "--max_steps=1",
    ]  # fmt: skip
    cases = bad_training_flags(folder)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    results = {name: run_program("train", *good, *case[0]) for name, case in cases.items()}
    after = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert before == after
    return results


@pytest.mark.parametrize("name", bad_training_flags(Path("/")))
def test_bad_input_to_train(results, folder, name):
    message = bad_training_flags(folder)[name][1]
    result = results[name]
    assert result.returncode == 2, result.stderr
    assert message in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("program", "flags", "message"),
    [
        ("prepare", ["--source=text", "--input=/nowhere.txt"], "--input=/nowhere.txt matches no"),
        ("prepare", ["--shard_tokens=1"], "--shard_tokens=1: 1 is not integer >= 1000"),
        ("prepare", ["--source=wiki"], "<pystdlib|tinyshakespeare|tinystories|fineweb"),
        (
            "prepare",
            ["--source=text", f"--input={__file__}", f"--output_dir={__file__}/out"],
            "cannot be made",
        ),
        (
            "prepare",
            ["--source=text", "--input=a.txt", "--field=body"],
            "error: --source=text does not use --field; leave it out, or take a source that ",
        ),
        ("generate", ["--run=/nowhere"], "--run=/nowhere is no directory"),
        ("generate", ["--model=o.bin", "--step=3"], "--step=3 is of a run's checkpoints, and --"),
    ],
)
def test_bad_input_to_other_programs(run_program, program, flags, message):
    result = run_program(program, *flags)
    assert result.returncode == 2
    assert message in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("program", "flags"),
    [
        ("generate", ["--run={}"]),
        ("generate", ["--model={}"]),
        ("generate", ["--model=hf:{}"]),
        ("evaluate", ["--run=r", "--output={}"]),
        ("export", ["--source={}", "--output=o.bin"]),
        ("checkpoint", ["ls", "--run={}"]),
        ("plan", ["--model={}.bin"]),
        ("plot", ["{}"]),
        ("compare", ["--model=d6", "--results={}"]),
        ("train", ["--model=d6", "--init_from={}"]),
    ],
)
def test_a_path_that_the_system_refuses_is_one_sentence(run_program, folder, program, flags):
    """A name too long, as a folder that this user may not look into (which root, whom tests may be
    run by, may): what asks whether it is there then gets an error."""
    flags = [flag.format("n" * 300) for flag in flags]
    if program == "train":
        flags += [f"--train_data={folder}/good.bin", "--sequence_length=16", "--val_every=0"]
    result = run_program(program, *flags)
    assert result.returncode == 2 and result.stderr.startswith("error: ")
    assert "nnn" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--workrs=1", "{}: there is no flag --workrs; did you mean --workers; see --help."),
        ("--workers=two", "{}: flag --workers=two: must be a whole number"),
        ("workers=2", "'workers=2' is not a flag, in {}; options are written --name=value."),
    ],
)
def test_a_mistake_in_a_flagfile_names_the_flagfile(run_program, tmp_path, line, message):
    (tmp_path / "run.flags").write_text(f"# a comment\n--source=text\n{line}\n")
    result = run_program("prepare", f"--flagfile={tmp_path}/run.flags", "--input=/nowhere.txt")
    told = f"error: {message.format(f'--flagfile={tmp_path}/run.flags')}"
    assert result.returncode == 2 and result.stderr.startswith(told), result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("kind", [MemoryError, jax.errors.JaxRuntimeError])
def test_want_of_memory_is_one_sentence(capsys, kind):
    """Whatever was being done; another error of the device is not taken for it."""

    def fail(what):
        raise kind(what)

    assert program.ended(lambda: fail("RESOURCE_EXHAUSTED: 7 bytes\nand more")) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: memory is not enough (RESOURCE_EXHAUSTED: 7 bytes); take a sma")
    assert told.count("\n") == 1
    if kind is not MemoryError:
        with pytest.raises(kind, match="INTERNAL"):
            program.ended(lambda: fail("INTERNAL: something else"))


@pytest.mark.parametrize("platforms", ["cuda", "tpu"])
def test_a_platform_that_is_not_here_is_one_sentence(platforms):
    """In a process of its own: JAX asks once for what it has."""
    if any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("it is here")
    done = subprocess.run(
        [sys.executable, "-m", "llmc_jax.plan", "--model=d6"],
        env=os.environ | dict(JAX_PLATFORMS=platforms), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert f"error: JAX_PLATFORMS={platforms} names no device that JAX finds here" in done.stderr
    assert "Traceback" not in done.stderr


def test_home_is_found_on_the_command_line_and_in_flagfiles(run_program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    home = Path.home()
    (tmp_path / "run.flags").write_text("--input=~/nowhere/*.txt\n")
    flags = ["--source=text", f"--flagfile={tmp_path}/run.flags", "--output_dir=~/nowhere/at/all"]
    result = run_program("prepare", *flags, "--verify")
    assert f"error: {home}/nowhere/at/all/manifest.json is not there" in result.stderr
    result = run_program("prepare", *flags)
    assert f"error: --input={home}/nowhere/*.txt matches no file" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run.flags"]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.flags")), ids=lambda p: p.stem)
def test_configs_are_made_of_known_flags(run_program, path):
    """Every flag and value is accepted: what stops the run is the data that is not there."""
    result = run_program("train", f"--flagfile={path}", "--train_data=/nowhere.bin")
    assert result.returncode == 2 and "--train_data=/nowhere.bin matches no file" in result.stderr


def test_help_lists_every_flag_of_ours(run_program):
    result = run_program("train", "--help")
    assert result.returncode == 0
    for name in TrainConfig.__dataclass_fields__:
        assert f"--{name}:" in result.stdout or f"--[no]{name}:" in result.stdout, name
    assert "--batch_size: B: sequences in a micro-batch" in result.stdout
