"""Lines of both logs become the same objects; a resume drops damaged ones, and says so."""

import math

import pytest

from llmc_jax.config import RunStopped
from llmc_jax.training.log_lines import read_lines, updates
from llmc_jax.training.logger import Logger, read_metrics
from llmc_jax.training.run_dir import RunDir

MAIN_LOG = ["s:0 tel:11.0", "s:0 trl:10.5 lr:0.001 norm:1.5", "s:1 tel:10.0", "s:1 eval:0.25"]
METRICS = [
    '{"step": 0, "val_loss": 11.0}',
    '{"step": 0, "train_loss": 10.5, "learning_rate": 0.001, "grad_norm": 1.5}',
    '{"step": 1, "val_loss": 10.0}',
    '{"step": 1, "hellaswag_acc_norm": 0.25}',
]
# what a power loss, a kill and a full disk leave
DAMAGED = ["\0" * 20, "", '{"step": 1, "train', "s:1 tr", "[1]", '{"step": null}', "s:1", "\x80"]


def test_both_logs_are_the_same_objects(tmp_path):
    (tmp_path / "main.log").write_text("\n".join(MAIN_LOG) + "\n")
    (tmp_path / "metrics.jsonl").write_text("\n".join(METRICS) + "\n")
    lines, damaged = read_lines(tmp_path / "main.log")
    assert lines == [
        (f"{text}\n", line.metrics)
        for text, line in zip(MAIN_LOG, read_lines(tmp_path / "metrics.jsonl")[0], strict=True)
    ]
    assert damaged == [] and [updates(line.metrics) for line in lines] == [0, 1, 1, 1]
    assert read_lines(tmp_path / "none") == ([], [])


@pytest.mark.parametrize("name", ["main.log", "metrics.jsonl"])
def test_a_resume_drops_damaged_lines_and_says_so(tmp_path, capsys, name):
    good = MAIN_LOG if name == "main.log" else METRICS
    mixed = [line for pair in zip(good, DAMAGED, strict=False) for line in pair] + DAMAGED[4:]
    text = "\n".join(mixed) + "\n" + good[0][:-2]  # and the last one has no end
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    lines, damaged = read_lines(tmp_path / name)
    assert [line.text for line in lines] == [f"{line}\n" for line in good]
    assert damaged == [2, 4, 6, 8, 9, 10, 11, 12, 13]
    Logger(RunDir(tmp_path), 5)
    assert f"{tmp_path / name}: 9 damaged lines were dropped" in capsys.readouterr().out
    assert (tmp_path / name).read_text() == "".join(f"{line}\n" for line in good)
    if name == "metrics.jsonl":
        assert len(read_metrics(tmp_path / name)) == 4


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 9223372036854775808, "val_loss": 1.0}',
        '{"step": -1, "val_loss": 1.0}',
        '{"step": true, "val_loss": 1.0}',
        '{"step": 1, "val_loss": 1' + "0" * 400 + "}",
        "[" * 100_000,
    ],
)
def test_what_no_run_can_have_logged_is_damage(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f"{METRICS[0]}\n{line}\n")
    whole, damaged = read_lines(tmp_path / "metrics.jsonl")
    assert (len(whole), damaged) == (1, [2])


@pytest.mark.parametrize("word", ["null", "NaN"])
def test_a_number_that_is_none_is_nan(tmp_path, word):
    """As it was written before it was null, too."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "val_loss": ' + word + "}\n")
    assert math.isnan(read_metrics(tmp_path / "metrics.jsonl")[0]["val_loss"])


def test_a_log_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "main.log").mkdir()
    with pytest.raises(RunStopped, match=r"main\.log cannot be read: Is a directory; mend that or"):
        Logger(RunDir(tmp_path), 5)
