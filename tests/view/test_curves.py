"""Logs of ours and of llm.c become the same curves; bad lines are named and left out."""

import json

import numpy as np
import pytest

from llmc_jax.config import BadInput
from llmc_jax.view.curves import Curve, read_run, read_runs, smooth, thin

MAIN_LOG = (
    "s:0 tel:11.0092\n"
    "s:0 trl:11.0000 lr:0.000001 norm:15.50\n"
    "s:1 trl:10.5000 lr:0.000002 norm:9.25\n"
    "s:2 tel:10.2500\n"
    "s:2 eval:0.2500\n"
)
METRICS = [
    dict(step=0, val_loss=11.0092, tokens=0),
    dict(step=0, train_loss=11.0, grad_norm=15.5, learning_rate=1e-6, tokens_per_s=100.0, tokens=8),
    dict(
        step=1, train_loss=10.5, grad_norm=9.25, learning_rate=2e-6, tokens_per_s=110.0, tokens=16
    ),
    dict(step=2, val_loss=10.25, tokens=16),
    dict(step=2, hellaswag_acc=0.2, hellaswag_acc_norm=0.25, tokens=16),
]


def write(folder, name: str, text: str):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder


def test_both_formats_give_the_same_curves(tmp_path):
    llmc = read_run(write(tmp_path / "a", "main.log", MAIN_LOG))
    ours = read_run(
        write(tmp_path / "b", "metrics.jsonl", "".join(json.dumps(m) + "\n" for m in METRICS))
    )
    assert ours.curves.keys() == llmc.curves.keys() | {"tokens_per_s"}
    for name, curve in llmc.curves.items():
        assert curve.steps.tolist() == ours.curves[name].steps.tolist()
        np.testing.assert_allclose(curve.values, ours.curves[name].values)
    # updates made: the loss of update 0 is at 1, as far as the validation after it
    assert llmc.curves["train_loss"].steps.tolist() == [1, 2]
    assert llmc.curves["val_loss"].steps.tolist() == [0, 2]
    assert (llmc.name, llmc.remarks) == ("a", [])


def test_a_run_named_twice_is_read_once(tmp_path):
    a = write(tmp_path / "a", "main.log", MAIN_LOG)
    b = write(tmp_path / "b", "main.log", MAIN_LOG)
    runs = read_runs([f"{a}", f"{b}", f"{a}/", f"{a}/main.log", f"{b}/../a"])
    assert [run.name for run in runs] == ["a", "b"]


def test_what_is_logged_twice_counts_as_it_was_last(tmp_path):
    again = MAIN_LOG + "s:1 trl:9.0000 lr:0.000002 norm:9.25\n"
    curve = read_run(write(tmp_path / "a", "main.log", again)).curves["train_loss"]
    assert (curve.steps.tolist(), curve.values.tolist()) == ([1, 2], [11.0, 9.0])


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        # the number may be cut short: 10.2500 could have been written whole
        ("main.log", MAIN_LOG + "s:3 trl:1", [6]),
        ("main.log", MAIN_LOG.replace("s:1 trl:10.5000 lr", "s:1 trl:10.5s:1 trl:10.5 lr"), [3]),
        ("main.log", MAIN_LOG + "s:4\n\nnonsense\n", [6, 7, 8]),
        ("metrics.jsonl", json.dumps(METRICS[0]) + '\n{"step": 1, "train_lo', [2]),
        ("metrics.jsonl", json.dumps(METRICS[0]) + '\n[1]\n{"step": null}\n', [2, 3]),
    ],
)
def test_a_line_that_is_not_whole_is_left_out_and_named(tmp_path, name, text, lines):
    run = read_run(write(tmp_path / "a", name, text))
    log = tmp_path / "a" / name
    assert run.remarks == [f"{log}: line {n} is not whole; left out" for n in lines]
    assert run.curves["val_loss"].values[0] == 11.0092 and 3 not in run.curves["val_loss"].steps


def test_many_bad_lines_are_counted(tmp_path):
    run = read_run(write(tmp_path / "a", "main.log", MAIN_LOG + "?\n" * 10))
    assert len(run.remarks) == 4 and "7 more lines are not whole" in run.remarks[-1]


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    (tmp_path / "x").mkdir()
    paths = [str(write(tmp_path / folder, "main.log", MAIN_LOG)) for folder in ("a", "x/a", "b")]
    assert [run.name for run in read_runs(paths)] == [*paths[:2], "b"]


def test_a_run_without_a_step_is_refused(tmp_path):
    empty = write(tmp_path / "empty", "metrics.jsonl", "")
    with pytest.raises(BadInput, match="empty: no step has been logged there yet; wait for"):
        read_runs([str(empty)])
    cut = write(tmp_path / "cut", "main.log", "s:0 te")
    with pytest.raises(BadInput, match=r"no step .* yet \(.*main.log: line 1 is not whole"):
        read_runs([str(cut)])
    (tmp_path / "none").mkdir()
    for path in ("none", "nowhere"):
        with pytest.raises(BadInput, match=f"{path} is neither a run's directory"):
            read_runs([str(tmp_path / path)])


def test_thinning_keeps_every_extreme_and_both_ends():
    rng = np.random.default_rng(0)
    values = rng.normal(size=20_000)
    values[12_345], values[5], values[17_000] = 50, np.nan, -50
    curve = Curve(np.arange(1, 20_001), values)
    few = thin(curve, 100)
    assert len(few.steps) <= 4 * 100
    assert few.steps[0] == 1 and few.steps[-1] == 20_000
    assert 50 in few.values and -50 in few.values and np.isnan(few.values).any()
    np.testing.assert_array_equal(few.values, values[few.steps - 1])  # points of the run, no means
    # of each stretch of 200 steps the lowest is there
    for start in range(0, 20_000, 200):
        inside = (few.steps > start) & (few.steps <= start + 200)
        assert np.nanmin(values[start : start + 200]) == np.nanmin(few.values[inside])
    assert thin(Curve(curve.steps[:100], values[:100]), 100).steps.tolist() == list(range(1, 101))


def test_smoothing_is_a_mean_of_neighbours_that_are_numbers():
    steps = np.arange(40)
    line = smooth(Curve(steps, steps * 2.0))
    np.testing.assert_allclose(line.values, line.steps * 2)
    assert len(line.steps) == 39  # windows of two
    assert smooth(Curve(steps[:2], np.array([1, np.nan]))).values.tolist() == [1]
    assert len(smooth(Curve(steps[:1], np.array([np.nan]))).values) == 0
