"""Measurements: a small one from end to end, files of results good and bad, what is shown."""

import json
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import jax.numpy as jnp
import pytest

from llmc_jax import compare, config, devices, ops
from llmc_jax.compare import CompareConfig
from llmc_jax.comparison import breakdown, charts, energy, measure, page, record, table
from llmc_jax.config import BadInput
from llmc_jax.contestant import Task
from llmc_jax.models import gpt2
from llmc_jax.ops import cases
from llmc_jax.ops.op import Cost
from tests import tiny


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch, tmp_path):
    monkeypatch.setitem(config.MODELS, "tiny", tiny.MODEL)
    monkeypatch.chdir(tmp_path)


def example(**fields) -> dict:
    """A record as it is read."""
    one = dict(
        schema=record.SCHEMA, platform="gpu", device="H100", devices=1, model_name="d12", B=4, T=64,
        dtype="bfloat16", recompute=0, ops_asked="auto", cpu_isa="", compile_s=3.2,
        step_ms=[10.0, 12.0, 11.0], tokens_per_s=23000.0, mfu={"llm.c": 0.41, "PaLM": 0.43},
        peak=dict(flops=989e12, name="a datasheet"), memory_bytes=2**31, planned_bytes=2**30,
        joules_per_step=5.12, ceilings=dict(copy_bytes_per_s=1e9, matmul_flops=1e12),
        passes={
            "mlp.forward": dict(flop=2e9, bytes=1e6, ms=4.0),
            "adamw": dict(flop=0, bytes=3e6, ms=None),
        },
        other_ms=1.0, commit="abc", versions=dict(jax="0.10.1"), time="2026-01-01 00:00:00",
    )  # fmt: skip
    return one | fields


def write(name: str, *records) -> None:
    lines = [one if isinstance(one, str) else json.dumps(one) for one in records]
    Path(name).write_text("\n".join(lines))


def test_a_measurement_is_appended_and_shown(monkeypatch, capsys, use_isa):
    """Small ceilings, or they would take longer than the step."""
    monkeypatch.setattr(compare.measure.__globals__["ceilings"], "copy_rate", lambda bytes: 5e9)
    monkeypatch.setattr(
        compare.measure.__globals__["ceilings"], "matmul_rate", lambda ops, dtype, n: 1e11
    )
    cfg = CompareConfig(model="tiny", B=2, T=16, steps=3, cpu_isa="portable", results="mine.jsonl")
    Path("mine.jsonl").write_text('{"schema": "llmc_jax.com')
    compare.main(cfg)
    assert "line 1: no whole JSON; remove the line" in capsys.readouterr().err
    made = json.loads(Path("mine.jsonl").read_text().splitlines()[1])
    assert made.keys() >= set(record.FIELDS) and len(made["step_ms"]) == 3
    flop = gpt2.flop_per_token(tiny.MODEL, 16)
    for name, count in flop.items():
        assert made["mfu"][name] == pytest.approx(count * made["tokens_per_s"] / 1e11, abs=1e-4)
    assert made["peak"] == dict(flops=1e11, name="measured matmul rate")
    assert made["joules_per_step"] is None or made["energy_by"]
    assert made["cpu_isa"] == "portable"
    seen = {name for name, one in made["passes"].items() if one["ms"]}
    assert {"attention.forward", "attention.backward", "mlp.backward", "adamw"} <= seen
    assert "classifier.backward" not in made["passes"]  # its kernel does both in one
    for suffix, begins in (("md", b"# The training"), ("png", b"\x89PNG"), ("html", b"<!doctype")):
        assert Path(f"mine.{suffix}").read_bytes().startswith(begins)
    assert made["device"] in Path("mine.md").read_text()


def test_what_cannot_be_read_is_passed_over_by_name():
    old = example(schema="llmc_jax.compare 0")
    without = example()
    del without["passes"]
    write("a.jsonl", example(), old, "", "[1]", without, "[" * 100_000)
    records, skipped = record.read([Path("a.jsonl")])
    assert len(records) == 1
    assert skipped == [
        f"a.jsonl, line {number}: {why}; remove the line, or measure again"
        for number, why in (
            (2, "of schema 'llmc_jax.compare 0', and this program reads 'llmc_jax.compare 1'"),
            (4, "no JSON object"),
            (5, "without passes"),
            (6, "no whole JSON"),
        )
    ]
    assert all(f"- passed over: {one}" in table.markdown(records, skipped) for one in skipped)


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("device", "two\nlines", "its device is no line of text"),
        ("commit", "\ud800", "its commit is no line of text"),
        ("devices", [1], "its devices is no whole number above 0"),
        ("B", "4", "its B is no whole number above 0"),
        ("T", 0, "its T is no whole number above 0"),
        ("recompute", True, "its recompute is no whole number of 0 or more"),
        ("compile_s", float("nan"), "its compile_s is no number of 0 or more"),
        ("tokens_per_s", 10**400, "its tokens_per_s is no number of 0 or more"),
        ("step_ms", 11.0, "its step_ms is no list with something in it"),
        ("step_ms", [], "its step_ms is no list with something in it"),
        ("step_ms", [1.0, "2"], r"its step_ms[1] is no number of 0 or more"),
        ("mfu", {"llm.c": 0.4}, "without mfu.PaLM"),
        ("peak", 3, "its peak is no object"),
        ("ceilings", dict(copy_bytes_per_s=0, matmul_flops=1), "no number of 1 or more"),
        ("joules_per_step", "a", "its joules_per_step is no number of 0 or more, or null"),
        ("passes", {"adamw": dict(flop=0, bytes=None, ms=1)}, "its passes.adamw.bytes is no"),
        ("passes", {"\ud800": dict(flop=0, bytes=0, ms=1)}, r"passes.'\ud800' is no line of"),
        ("versions", dict(jax=[]), "its versions.jax is no line of text"),
        ("time", 3, "its time is no line of text"),
    ],
)
def test_a_value_of_another_kind_is_passed_over_by_name(field, value, why):
    """Before it is shown, or compared with others."""
    write("a.jsonl", example(), example(B=5) | {field: value})
    records, (problem,) = record.read([Path("a.jsonl")])
    assert records == [example()]
    assert problem.startswith("a.jsonl, line 2: ") and why in problem
    assert problem.isprintable() and problem.endswith("; remove the line, or measure again")


def test_a_file_of_damaged_lines_alone_shows_nothing(capsys):
    write("a.jsonl", "nonsense", example(B=None))
    with pytest.raises(BadInput, match=r"--results=a\.jsonl holds no measurement that can be"):
        compare.main(CompareConfig(measure=False, results="a.jsonl"))
    told = capsys.readouterr().err
    assert "a.jsonl, line 1: no whole JSON; remove" in told and "line 2: its B is no" in told


def test_names_are_drawn_as_they_are_written(recwarn):
    """And not as formulas, which they need not be; whatever letters they have."""
    name = r"a$\frac$ 运"
    one = example(device=name, passes={name: dict(flop=1, bytes=1, ms=1.0)})
    assert charts.picture([one]).startswith(b"\x89PNG")
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_of_many_lines_that_cannot_be_read_few_are_named():
    write("a.jsonl", example(), *["a line of text"] * 40_000)
    records, skipped = record.read([Path("a.jsonl")])
    assert len(records) == 1 and len(skipped) == 5
    assert skipped[-1] == "a.jsonl: 39996 more lines"


def test_nothing_is_appended_to_what_is_somebody_elses(monkeypatch):
    """And that is told before anything is measured; lines of its own are no reason."""
    Path("notes.txt").write_text("my notes\n")
    monkeypatch.setattr(compare, "measure", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(BadInput, match=r"--results=notes\.txt is another program's: its line 1 is"):
        compare.main(CompareConfig(model="tiny", T=16, results="notes.txt"))
    assert Path("notes.txt").read_text() == "my notes\n"
    write("a.jsonl", example(), example(schema="llmc_jax.compare 0"), "", '{"sch')
    record.refuse_others(Path("a.jsonl"))


def test_the_last_of_each_is_shown_the_fastest_first():
    slow, again = example(tokens_per_s=1.0), example(tokens_per_s=2.0, time="2026-01-02 00:00:00")
    write("a.jsonl", again, slow, example(device="B200", tokens_per_s=9.0))
    records, _ = record.read([Path("a.jsonl")])
    assert [r["tokens_per_s"] for r in records] == [9.0, 2.0]


def test_what_was_measured_differently_is_shown_so():
    """Also beside lines of before the instruction set was written down."""
    before = example()
    del before["cpu_isa"]
    write("a.jsonl", before, example(cpu_isa="avx2"), example(cpu_isa="avx512", recompute=3))
    records, skipped = record.read([Path("a.jsonl")])
    rows = {(table.title(r), table.workload(r)) for r in records}
    assert not skipped and rows == {
        ("H100, --ops=auto", "d12, B=4, T=64, bfloat16"),
        ("H100, --ops=auto (avx2)", "d12, B=4, T=64, bfloat16"),
        ("H100, --ops=auto (avx512)", "d12, B=4, T=64, bfloat16, recompute 3"),
    }
    text = table.markdown(records, [])
    assert all(f"| {ops} |" in text for ops in ("auto", "auto (avx2)", "auto (avx512)"))


def test_table_and_breakdown_by_hand():
    text = table.markdown([example()], [])
    assert (
        "| H100 | d12, B=4, T=64, bfloat16 | auto | 11.0 | 10.0-12.0 | 3 | 23,000 | 41.0% | 43.0% "
        "| 989 (a datasheet) | 2.00 | 1.00 | 3.2 | 0.02 | 1.0 | 1 | 2026-01-01, abc, jax 0.10.1 |"
    ) in text
    assert "| mlp.forward | 4.00 | 80.0% | 2.00 | 50% | matmul |" in text
    assert "| adamw |  |  | 3.00 |  | copy |" in text
    assert "| what is in no op | 1.00 | 20.0% |  |  |  |" in text


class Check(HTMLParser):
    """Tags that are closed, and nothing that a page would load."""

    def __init__(self):
        super().__init__()
        self.open, self.loads = [], []

    def handle_starttag(self, tag, attrs):
        self.loads += [v for k, v in attrs if k in ("src", "href") and not v.startswith("data:")]
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing():
    records = [example(), example(device="<b>x", tokens_per_s=1.0, joules_per_step=None)]
    text, check = page.html(records, ["a & b"]), Check()
    check.feed(text)
    assert not check.open and not check.loads and "<script" not in text and "@import" not in text
    assert "&lt;b&gt;x" in text and "a &amp; b" in text and "<b>" not in text
    assert "prefers-color-scheme" in text and "log scale" in text and "not told" in text
    assert "Joules" not in page.html([records[1]], [])  # nobody knows


def test_bars_are_as_long_as_their_numbers():
    assert page.width(10, [5, 10], log=False) == 80 and page.width(5, [5, 10], log=False) == 40
    assert page.width(1000, [1, 1000], log=True) == pytest.approx(80)
    assert 0 < page.width(1, [1, 1000], log=True) < page.width(10, [1, 1000], log=True) < 80


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(T=33), "--T=33 is longer than --model=tiny can take; use at most 32"),
        (dict(model="d7"), "--model=d7 is unknown"),
        (dict(ops="magic"), "--ops=magic: no op has an implementation 'magic'"),
        (dict(results="*.jsonl"), "appended to the first file, so that must be a name"),
        (dict(results="no/where.jsonl"), "no/where.jsonl is in no directory that exists"),
        (dict(results=","), "--results=, names no file; give one"),
        (dict(output=".", measure=False), r"--output=\. names only a directory; give PATH"),
        (dict(output="no/where"), "--output=no/where.md is in no directory that exists"),
        (dict(output="taken"), "--output=taken.html is a directory; name a file"),
        (dict(results="taken.jsonl"), "^taken.html is a directory; name a file"),
        (dict(output="empty/x"), "--output=empty/x.md cannot be written: Not a directory"),
        (dict(results="empty/x"), "--results=empty/x cannot be written: Not a directory"),
        (dict(results="empty.md"), "--results=empty.md is a name that --output has too"),
        (dict(results="/dev/full"), "/dev/full cannot be read: it is a pipe or a device"),
        (dict(measure=False, results="no/*.none"), "--results=no/\\*.none matches no file; name"),
        (dict(measure=False, results="empty"), "--results=empty holds no measurement"),
        (dict(measure=False, results="a folder"), "a folder cannot be read: Is a directory"),
    ],
)
def test_bad_input_is_one_sentence(monkeypatch, options, message):
    Path("empty").touch()
    Path("a folder").mkdir()
    Path("taken.html").mkdir()
    monkeypatch.setattr(measure, "prepare_step", lambda *_: pytest.fail("measured"))
    with pytest.raises(BadInput, match=message):
        compare.main(CompareConfig(**(dict(model="tiny", B=2, T=16) | options)))
    assert sorted(path.name for path in Path().iterdir()) == ["a folder", "empty", "taken.html"]


def zone(folder: Path, name: str, before: int, after: int):
    path = folder / name
    path.mkdir()
    (path / "energy_uj").write_text(str(before))
    (path / "max_energy_range_uj").write_text("1000000")
    return lambda: (path / "energy_uj").write_text(str(after))


def test_energy_of_processors_by_rapl(monkeypatch, tmp_path):
    """Packages only, their parts left out; a counter that started again at 0."""
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    ends = [
        zone(tmp_path, "intel-rapl:0", 100_000, 350_000),
        zone(tmp_path, "intel-rapl:0:0", 0, 9),
    ]
    ends.append(zone(tmp_path, "intel-rapl:1", 900_000, 100_000))
    with energy.measured("cpu") as used:
        for end in ends:
            end()
    assert used.joules == pytest.approx(0.25 + 0.2) and "RAPL" in used.by


def test_energy_that_nobody_tells_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    for platform in ("cpu", "gpu", "tpu"):
        with energy.measured(platform) as used:
            pass
        assert used.joules is None and not used.by


def test_energy_of_gpus_by_nvidia_smi(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 100.5\necho 99.5\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(energy, "PERIOD", 0.01)
    with energy.measured("gpu") as used:
        subprocess.run(["sleep", "0.3"], check=True)
    assert 200 * 0.3 <= used.joules < 200 * 30 and "nvidia-smi" in used.by


def test_the_time_of_a_pass_is_that_of_one_device(monkeypatch):
    """Whose least time it stands beside: of two that each take 100 us, 0.1 ms."""
    ran = [("fusion.1", 100.0), ("fusion.1", 100.0)]
    monkeypatch.setattr(breakdown, "instructions", lambda events: ran)
    hlo = 'fusion.1 = f32[] fusion(), metadata={op_name="jit(step)/mlp.forward/add"}'
    for count, ms in ((1, 0.2), (2, 0.1)):
        passes = breakdown.traced(lambda: None, 1, hlo, count)
        assert passes == {"mlp.forward": pytest.approx(ms)}


def test_costs_of_a_step_add_up_to_the_formulas():
    """Products of all passes: 6 operations a parameter of a matrix and a token, and attention's 7
    products of half a square; what a page of arithmetic would say of the rest."""
    model, B, T = tiny.MODEL, 2, 16
    needs = breakdown.needed(model, B, T, "bfloat16")
    matrices = 12 * model.L * model.C**2 + model.Vp * model.C
    flop = 6 * B * T * matrices + 7 * B * T * T * model.C * model.L
    assert sum(cost.flop for cost in needs.values()) == flop
    X = 2 * B * T * model.C
    assert needs["layernorm.forward"] == Cost(0, 2 * X)
    assert needs["residual_layernorm.backward"] == Cost(0, 4 * X * 2 * model.L)
    in_layers = 12 * model.L * model.C**2  # whose gradients are bfloat16
    assert needs["adamw"] == Cost(0, 28 * model.num_parameters - 2 * in_layers)
    assert needs["global_norm"] == Cost(0, 4 * model.num_parameters - 2 * in_layers)


def test_costs_of_gradients_in_factors_are_those_of_the_passes_that_multiply_them():
    model, rows = tiny.MODEL, 32
    needs = breakdown.needed(model, 2, 16, "float32")
    changed = breakdown.with_factors(needs, model, rows, "float32")
    in_layers = 12 * model.L * model.C**2
    backward = [sum(n[f"{op}.backward"].flop for op in ("matmul", "mlp")) for n in (needs, changed)]
    assert backward == [4 * rows * in_layers, 2 * rows * in_layers]
    # dout and inp of qkv, attproj, fc and fcproj, each times itself, of which half is enough
    columns = ((3 + 1) + (1 + 1) + (4 + 1) + (1 + 4)) * model.C * model.L
    read = 4 * (model.num_parameters - in_layers + rows * columns)
    assert changed["global_norm"] == Cost(rows**2 * columns, read)
    assert changed["adamw"] == Cost(2 * rows * in_layers, 24 * model.num_parameters + read)


@pytest.mark.parametrize("recompute", [1, 2])
@pytest.mark.parametrize("spec", ["jnp", "ffi"])
def test_costs_are_those_of_the_step_that_is_made(spec, recompute):
    chosen, _ = ops.select(spec, "cpu")
    model = config.MODELS["d6"]
    task = Task(model=model, B=1, T=128, dtype="float32", recompute=recompute)
    flop = measure.needed_by(chosen, task, 1)["adamw"].flop
    assert (flop > 0) == (spec == "ffi" and recompute == 2)


@pytest.mark.parametrize("op", cases.CASES)
def test_costs_count_what_a_pass_returns(op):
    """At least its output is written, and at least its inputs' gradients."""
    case = cases.CASES[op][0]
    inputs = cases.shapes(case, jnp.dtype("bfloat16"))
    forward, backward = ops.COST[op](*inputs, **case.static)
    made = [x.shape for x in cases.make_inputs(case, jnp.dtype("bfloat16"))]
    assert made == [x.shape for x in inputs]
    assert forward.bytes > 0 and backward.bytes > 0
    assert backward.flop == (2.5 if op == "attention" else 2) * forward.flop


def test_an_unknown_device_is_measured_and_a_known_one_has_its_peak(monkeypatch):
    measure = compare.measure.__globals__
    assert measure["best_flops"]("float32", 2, 7.0) == (14.0, "measured matmul rate")
    monkeypatch.setattr(devices, "known", lambda kind: devices.named("H100"))
    assert measure["best_flops"]("float32", 2, 7.0) == (
        2 * 495e12,
        "NVIDIA H100 datasheet (SXM), TF32",
    )
