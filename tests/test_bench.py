"""The benchmark program: contestants in turn, the table, what fails, and that rivals compute the
same losses as our step. No time is asserted."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from llmc_jax import bench, bench_step, config, machine
from llmc_jax.bench import BenchConfig
from llmc_jax.config import BadInput, ModelConfig
from llmc_jax.contestant import Contestant, Task

# V = Vp: rivals normalise over all rows of the table
MODEL = ModelConfig(L=2, NH=3, C=48, maxT=32, V=96, Vp=96)
CFG = BenchConfig(model="tiny", B=2, T=16, steps=2, warmup=1)

SAY = "print('a library says something'); log = open('log', 'a'); log.write(NAME); log.close()"
FAKE = """
import os, sys
from llmc_jax.config import BadInput
from llmc_jax.contestant import serve
NAME = os.path.basename(sys.argv[0])[0]
calls = []
def prepare(task):
    {prepare}
    def step():
        calls.append(1)
        {step}
        return task.T + len(calls) / 10
    return step
serve(prepare)
"""


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch, tmp_path):
    monkeypatch.setitem(config.MODELS, "tiny", MODEL)
    monkeypatch.chdir(tmp_path)


def race(tmp_path, **scripts):
    """The race of fake contestants: name -> (statement of prepare, statement of a step)."""
    entries = []
    for name, (prepare, step) in scripts.items():
        path = tmp_path / f"{name}.py"
        path.write_text(FAKE.format(prepare=prepare, step=step))
        entries.append((name, [sys.executable, str(path)], CFG.task(name)))
    return bench.race(entries, CFG)


def test_contestants_step_in_turn(tmp_path):
    a, b = race(tmp_path, a=("pass", SAY), b=("pass", SAY))
    assert (tmp_path / "log").read_text() == "ababab"
    assert [answer["loss"] for answer in a.answers] == [16.1, 16.2, 16.3]
    assert a.answers[-1]["peak"] > 2**20 and a.answers[-1]["ms"] > 0
    assert a.failure == b.failure == "" and len(b.answers) == 3


def test_one_that_fails_drops_out_and_the_others_go_on(tmp_path):
    contestants = race(
        tmp_path,
        good=("pass", "pass"),
        big=("raise MemoryError('no room\\nfor it')", "pass"),
        killed=("pass", "len(calls) == 2 and os.kill(os.getpid(), 9)"),
        gone=("os._exit(3)", "pass"),
    )
    assert [one.failure for one in contestants] == [
        "",
        "MemoryError: no room",
        "killed by SIGKILL, probably out of memory",
        "ended with exit status 3",
    ]
    assert [len(one.answers) for one in contestants] == [3, 0, 1, 0]
    row = bench.table(contestants, CFG).splitlines()[3]
    assert row == "| llmc_jax --ops=big | failed: MemoryError: no room |  |  |  |  |  |  |"


def test_bad_input_of_a_contestant_ends_the_race(tmp_path):
    with pytest.raises(BadInput, match="--B=2 is not right"):
        race(tmp_path, good=("pass", "pass"), bad=("raise BadInput('--B=2 is not right')", ""))


def contestant(name, *ms, peak=2**30, failure=""):
    answers = [dict(ms=1000.0 * x, loss=1.5, peak=peak) for x in ms]
    return Contestant(name, process=None, answers=answers, failure=failure)


def test_table_leaves_out_warm_up_and_compares_with_the_first():
    contestants = [
        contestant("jnp+gelu=jnp", 9, 1, 3),
        contestant("pytorch", 9, 4, 4, peak=2**29),
        contestant("autodiff", 9, 1, 1, peak=None),
    ]
    lines = bench.table(contestants, CFG).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2:] == [
        "| llmc_jax --ops=jnp,gelu=jnp | 2000 | 1000-3000 | 16 | 1.00x | 1024 | 1.00x | 1.5000 |",
        "| pytorch | 4000 | 4000-4000 | 8 | 0.50x | 512 | 0.50x | 1.5000 |",
        "| autodiff | 1000 | 1000-1000 | 32 | 2.00x | unknown |  | 1.5000 |",
    ]
    failed = bench.table([contestant("auto", failure="x"), contestants[1]], CFG).splitlines()
    assert failed[3] == "| pytorch | 4000 | 4000-4000 | 8 |  | 512 |  | 1.5000 |"


def test_a_task_survives_the_command_line():
    task = CFG.task(bench.spec("jnp+attention=ffi"))
    assert task.ops == "jnp,attention=ffi" and task.model == MODEL
    assert Task.from_json(task.to_json()) == task


def test_rivals_compute_what_our_step_does(monkeypatch, capsys, tmp_path):
    """Three steps from the same parameters on the same batch: losses agree to the last digit."""
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")  # compiling takes it half a minute
    names = ["jnp", "autodiff"] + ["pytorch"] * (importlib.util.find_spec("torch") is not None)
    (tmp_path / "results.md").write_text("# Results\n")
    cfg = BenchConfig(
        model="tiny", B=2, T=16, steps=2, warmup=1, programs=",".join(names), output="results.md"
    )
    assert bench.main(cfg) == 0
    report = capsys.readouterr().out
    losses = [float(line.split("|")[-2]) for line in report.splitlines()[-len(names) - 1 : -1]]
    assert losses == pytest.approx([losses[0]] * len(names), abs=1.1e-4)
    assert losses[0] < 4.6  # log(V) at first
    assert report.startswith("`python -m llmc_jax.bench") and ", jaxlib 0" in report
    assert (tmp_path / "results.md").read_text() == f"# Results\n\n{report[:-1]}"


def test_a_table_is_appended_or_nothing_is_changed(tmp_path):
    path = tmp_path / "results.md"
    path.write_bytes(b"caf\xe9\n\n")
    bench.append("results.md", "| a |\n")
    assert path.read_bytes() == b"caf\xe9\n\n| a |\n"
    (tmp_path / "results.md.tmp").symlink_to("/dev/full")
    with pytest.raises(BadInput, match=r"results\.md cannot be written: No space left"):
        bench.append("results.md", "| b |\n")
    assert path.read_bytes() == b"caf\xe9\n\n| a |\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(model="d7"), "--model=d7 is unknown"),
        (dict(T=33), "--T=33 is longer than --model=tiny can take; use at most 32"),
        (dict(programs=","), "--programs names no program"),
        (dict(programs="jnp,pytorch"), "needs no_such_package; pip install it==1"),
        (dict(programs="autodiff"), "which only a clone of the repository has"),
        (dict(output="nowhere/out.md"), "--output=nowhere/out.md is in no directory"),
        (dict(output="."), "--output=. is a directory; name a file"),
        (dict(output="pytorch.py/x"), "--output=pytorch.py/x cannot be written: Not a directory"),
        (dict(output="/dev/full"), "--output=/dev/full is no file that can be replaced; name an"),
    ],
)
def test_bad_input_before_anything_is_started(monkeypatch, tmp_path, options, message):
    (tmp_path / "pytorch.py").touch()
    monkeypatch.setattr(bench, "RIVALS", tmp_path)
    monkeypatch.setattr(bench, "race", lambda *_: pytest.fail("raced"))
    monkeypatch.setitem(bench.NEEDS, "pytorch", ("no_such_package", "it==1"))
    with pytest.raises(BadInput, match=message):
        bench.main(BenchConfig(**(dict(model="tiny", T=16, programs="jnp") | options)))


def test_a_program_that_does_not_exist_is_one_sentence():
    command = [sys.executable, "-m", "llmc_jax.bench", "--programs=foo"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "--programs=foo is neither pytorch nor autodiff" in result.stderr


def test_missing_kernels_are_told(monkeypatch, capsys):
    monkeypatch.setattr(bench_step.ffi, "available", lambda library: False)
    monkeypatch.setattr(bench_step.ffi, "status", lambda platform: "the library is of another age")
    bench_step.select_ops("jnp", MODEL)
    assert capsys.readouterr().err == ""
    for spec in ("auto", "mlp=jnp"):
        bench_step.select_ops(spec, MODEL)
        assert capsys.readouterr().err == (
            f"warning: --programs={spec} takes jnp for want of kernels: "
            "the library is of another age.\n"
        )


def test_versions_are_told_also_of_a_clone_that_is_not_installed():
    told = machine.describe("numpy", "llmc_jax_of_nobody")
    assert f"numpy {np.__version__}, llmc_jax_of_nobody not installed" in told
