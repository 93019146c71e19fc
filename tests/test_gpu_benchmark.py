"""The GPU's measuring program, tried out on the CPU: that nothing that breaks stops the rest, and
that everything is written down. Needs no PyTorch; no time is asserted."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import gpu
from benchmarks.gpu_stages import stage

ROOT = Path(__file__).parent.parent

FAKE = """
import os, time
from benchmarks.gpu_stages import stage
from benchmarks.gpu_stages.stage import Row, Skip, need

def skip():
    need("no_such_package")

def rows():
    return [
        Row("op", "fine", lambda: dict(ms=1.5)),
        Row("op", "raises", lambda: 1 / 0),
        Row("op", "dies", lambda: os._exit(3)),
        Row("op", "hangs", lambda: time.sleep(60), seconds=1),
        Row("op", "skips", skip),
        Row("op", "poisoned", lambda: [].remove("CUDA_ERROR_ILLEGAL_ADDRESS")),
        Row("op", "process", lambda: dict(process=os.getpid())),
        Row("op", "same process", lambda: dict(process=os.getpid())),
    ]

if __name__ == "__main__":
    stage.run("fake", rows)
"""
SLOW = """
import time
from benchmarks.gpu_stages import stage
from benchmarks.gpu_stages.stage import Row

if __name__ == "__main__":
    stage.run("slow", lambda: [Row("op", "sleeps", lambda: time.sleep(60)),
                               Row("op", "behind it", dict)])
"""
PARTS = """
from benchmarks.gpu_stages import stage
from benchmarks.gpu_stages.stage import Row

if __name__ == "__main__":
    stage.run("parts", lambda: [Row("op", "later", dict), Row("op", "at first", dict, first=True)])
"""
PROGRAM = """
from absl import app
from benchmarks import gpu
gpu.ALL = (
    gpu.Stage("parts", 20, 1, "first"),
    gpu.Stage("fake", 20, 1),
    gpu.Stage("parts", 20, 1, "rest"),
    gpu.Stage("no_such_stage", 20, 0),
    gpu.Stage("slow", 2, 0),
    gpu.Stage("last", 1, 2),
)
app.run(gpu.main)
"""


def run(results: Path, *flags: str, program=("-m", "benchmarks.gpu"), root: Path = ROOT) -> str:
    """What the program says that lies in `root`."""
    command = [sys.executable, *program, "--platform=cpu", "--small", f"--results={results}"]
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [*command, *flags], capture_output=True, text=True, check=True, cwd=root, env=environment
    )
    return done.stdout


def read(results: Path) -> list[dict]:
    return [json.loads(line) for line in results.read_text().splitlines()]


def rows(records: list[dict], stage: str) -> dict[str, dict]:
    """by -> what was written last of it."""
    return {r["by"]: r for r in records if r["stage"] == stage and "by" in r}


def test_what_breaks_is_written_down_and_stops_nothing_else(tmp_path):
    stages = tmp_path / "benchmarks" / "gpu_stages"
    shutil.copytree(ROOT / "benchmarks", stages.parent, ignore=shutil.ignore_patterns("results"))
    (stages / "fake.py").write_text(FAKE)
    (stages / "slow.py").write_text(SLOW)
    (stages / "parts.py").write_text(PARTS)
    results = tmp_path / "gpu.jsonl"
    results.write_text('{"stage": "old", "row": 0, "op": "of before", "by": "us", "ms": 1}\n')
    run(results, program=("-c", PROGRAM), root=tmp_path)
    records = read(results)
    assert records[0]["stage"] == "old" and records[1]["stage"] == "run"
    fake = rows(records, "fake")
    assert fake["fine"]["ms"] == 1.5
    assert fake["raises"]["failed"] == "ZeroDivisionError: division by zero"
    assert fake["dies"]["failed"].startswith("exit status 3")
    assert fake["hangs"]["failed"] == "the row's time was over"
    assert fake["skips"]["skipped"] == "no_such_package is not installed"
    assert "failed" in fake["poisoned"]
    finished = [r["by"] for r in records if "by" in r and "started" not in r]
    assert finished[1] == "at first" and finished.count("at first") == 1
    assert finished.index("later") > finished.index("same process")
    assert fake["process"]["process"] == fake["same process"]["process"]
    assert rows(records, "slow")["sleeps"]["failed"] == "the stage's time was over"
    assert "behind it" not in rows(records, "slow")
    ends = {r["stage"]: r["end"] for r in records if "end" in r}
    assert ends["parts first"] == ends["parts rest"] == ends["fake"] == "done"
    assert ends["slow"] == "stopped after 2 s"
    assert ends["no_such_stage"].startswith("failed: exit status 1")
    assert "no_such_stage" in ends["no_such_stage"]
    assert ends["last"].startswith("skipped: ")

    with open(results, "a") as file:
        file.write('{"stage": "cut sho')  # by a kill
    report = run(results, "--stages=table")
    assert "- stage slow: stopped after 2 s" in report
    report = (tmp_path / "gpu.md").read_text()
    assert "- slow: op by behind it: not reached" in report
    assert "- fake: op by dies: failed: exit status 3" in report
    assert "- stage slow: stopped after 2 s" in report


def test_cheap_stages(tmp_path):
    results = tmp_path / "gpu.jsonl"
    run(results, "--stages=sanity,correctness,table")
    records = read(results)
    assert rows(records, "sanity")["jax"]["ms"] > 0
    assert rows(records, "sanity")["python"]["machine"].startswith("commit ")
    verdicts = [r for r in records if r["stage"] == "correctness" and "by" in r]
    finished = [r for r in verdicts if "started" not in r]
    assert len(finished) == len(verdicts) / 2 > 3
    assert all(r.get("ok") or "skipped" in r for r in finished), finished
    assert {r["stage"]: r["end"] for r in records if "end" in r} == {
        "sanity": "done",
        "correctness": "done",
        "table": "done",
    }
    report = (tmp_path / "gpu.md").read_text()
    assert "| five ops" not in report and "five ops (jax): ok: True" in report
    assert report.count("| classifier 2x5x12 64x12 bfloat16 |") == 3


def test_the_library_is_built_where_none_is_installed(tmp_path, monkeypatch):
    from benchmarks.gpu_stages import build

    (tmp_path / build.FILE).touch()
    ran = []
    monkeypatch.setattr(build, "run", ran.append)
    monkeypatch.setattr(build, "BUILD", tmp_path)
    monkeypatch.setattr(build, "OURS", tmp_path / "built.so")
    monkeypatch.setattr(build.ffi, "library_path", lambda library: None)
    assert build.compile_library()["seconds"] >= 0
    assert build.OURS.exists() and [command[0] for command in ran] == ["cmake", "cmake"]
    monkeypatch.setattr(build.ffi, "library_path", lambda library: tmp_path / f"{library}.so")
    assert build.compile_library() == dict(installed=str(tmp_path / "cuda.so"))


def test_a_library_that_came_along_stays_where_the_build_fails(tmp_path, monkeypatch):
    from benchmarks.gpu_stages import build, results

    ours = tmp_path / "came_along.so"
    ours.write_text("whole")
    monkeypatch.setenv(results.END, str(time.monotonic() + 60))
    monkeypatch.setattr(results, "platform", lambda: "gpu")
    monkeypatch.setattr(build, "OURS", ours)
    monkeypatch.setattr(build.ffi, "library_path", lambda library: ours)
    monkeypatch.setattr(build, "status", lambda: "loaded")
    for returned, why in ((None, "not done after 4"), (1, "error: wrong")):
        monkeypatch.setattr(stage, "call", lambda *args, r=returned: (r, "a\nerror: wrong\nb"))
        result = build.build(lambda: None)
        assert result["failed"].startswith(why) and result["status"] == "loaded"
    assert ours.read_text() == "whole"


def test_what_a_tool_says_outlives_its_end(tmp_path, monkeypatch):
    from benchmarks.gpu_stages import results

    monkeypatch.setattr(results, "file", lambda: tmp_path / "gpu.jsonl")
    assert stage.call(["sh", "-c", "echo before; exit 3"], "tool", 60) == (3, "before\n")
    late = stage.call(["sh", "-c", "echo said; exec sleep 60"], "tool", 1)
    assert late == (None, "said\n")
    assert (tmp_path / "gpu.tool.log").read_text() == "before\nsaid\n"


def test_stages_fit_the_budget():
    assert sum(stage.least for stage in gpu.ALL) <= gpu.BUDGET.default - 30
    assert gpu.BUDGET.default <= 500  # of 600, with the start of the machine
    parts = [stage.name for stage in gpu.ALL if stage.part]
    assert sorted(parts) == sorted(2 * list(dict.fromkeys(parts)))


def test_rows_on_a_gpu(monkeypatch):
    from benchmarks.gpu_stages import correctness, jax_ops, kernels, results

    monkeypatch.setattr(results, "platform", lambda: "gpu")
    monkeypatch.setattr(results, "small", lambda: False)
    timed = [(row.op, row.by) for row in kernels.rows()]
    assert [by for op, by in timed if op == "classifier in place"] == ["cuda"]
    assert len(set(timed)) == len(timed)

    checked = [(row.op, row.by) for row in correctness.rows()]
    assert len(set(checked)) == len(checked)
    ours = {(op, by) for op in correctness.EXTRA for by in jax_ops.kernels(op) if by != "cudnn"}
    ours |= {("adamw", "cuda"), ("global_norm", "cuda")}
    first = checked[: len(ours)]
    assert {(op.split()[0], by) for op, by in first} == ours
    assert not any("float32" in op for op, _ in first)


def test_every_kernel_of_ours_has_its_group():
    from benchmarks.gpu_stages import breakdown

    kernels = json.loads((ROOT / "tests" / "testdata" / "cuda_sass.json").read_text())["kernels"]
    for name in kernels["sm_90a"]:
        # a layernorm's arguments are structs called Forward and Backward
        group = breakdown.group(f"void llmc::cuda::{name}(llmc::cuda::Forward<float>, int)")
        in_attention = name.startswith(("attention::", "hopper::"))
        assert group != "XLA's other fusions" and (group == "attention") == in_attention, name


def test_table_of_results(tmp_path):
    step = dict(min_max=[99, 102], tokens_per_s=655360, mfu_llmc=0.5, mfu_nanogpt=0.55,
                loss_last=9.5, steps=40, peak_gib=30)  # fmt: skip
    lines = [
        dict(stage="ceilings", row=0, op="copy", by="torch", ms=2, tbs=4),
        dict(stage="ceilings", row=1, op="gemm qkv fwd", by="torch", ms=9, tflops=0.0),  # rounded
        dict(stage="kernels", row=0, op="gelu backward", by="cuda", started=True),
        dict(stage="kernels", row=0, op="gelu backward", by="cuda", ms=0.2, tbs=3.2),
        dict(stage="kernels", row=1, op="gelu backward", by="jnp", ms=0.5, tbs=1.3),
        dict(stage="kernels_torch", row=0, op="gelu backward", by="torch.compile", ms=0.3, tbs=2),
        dict(stage="kernels", row=2, op="new op", by="cuda", ms=0.3),
        dict(stage="step", row=0, op="step", by="--ops=cuda", ms=100.4, **step),
        dict(stage="step", row=0, op="step", by="--ops=cuda", ms=100, **step),
        dict(stage="breakdown", row=0, op="kernels", by="--ops=cuda", ms=99,
             groups={"gemm": 65, "mystery": 34}, kernels={"gemm|x": 65}),
    ]  # fmt: skip
    results = tmp_path / "gpu.jsonl"
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(results, "--stages=table")
    report = (tmp_path / "gpu.md").read_text()
    gelu = next(line for line in report.splitlines() if line.startswith("| gelu backward"))
    assert "0.200 (cuda; 3.2 TB/s) | 0.300 (torch.compile; 2 TB/s)" in gelu and "1.50x" in gelu
    assert "| --ops=cuda | 100.00 | 99.00-102.00 | 655360 | 50.0% | 55.0% | 1.13 | 9.5" in report
    assert "| mystery |  | 34 |" in report and "| gemm\\|x | 65 |" in report
