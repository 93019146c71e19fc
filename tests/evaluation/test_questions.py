"""Questions are read as llm.c's scripts read them; a bad file is named, with its line."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from llmc_jax.config import BadInput, ModelConfig
from llmc_jax.data.tokenizer import EOT, tokenizer
from llmc_jax.evaluation import fetch
from llmc_jax.evaluation.multiple_choice import fit_questions
from llmc_jax.evaluation.questions import read_questions
from llmc_jax.interop.llmc_text import Example, write_eval

HERE = Path(__file__).parent
MODEL = ModelConfig(L=1, NH=1, C=16, maxT=32)
GOOD = dict(ctx="A", endings=["b", "c"], label=1)


def test_hellaswag():
    decode = tokenizer().decode
    questions = read_questions("hellaswag", f"{HERE}/questions.jsonl")
    assert len(questions) == 12
    context, completions, label = questions[1]
    assert decode(context) == "The dog heard the postman at the gate. It"
    assert decode(completions[1]) == " ran to the door and barked." and label == 1
    assert questions[4].label == 0  # written as text
    assert questions[9].context == [EOT]  # there is none


def test_mmlu():
    decode = tokenizer().decode
    questions = read_questions("mmlu", f"{HERE}/*.csv")
    assert [q.label for q in questions] == [1, 2, 3, 0, 2, 1, 3, 0]
    assert decode(questions[0].context) == (
        "Question: How many legs does a spider have?\n\nAnswer:"
    )
    assert [decode(tokens) for tokens in questions[0].completions] == [" 6", " 8", " 10", " 12"]
    assert "lines.\nWhich planet" in decode(questions[4].context)
    assert decode(questions[7].context).startswith("Question: 0.50 is")


def test_a_file_of_llm_c_holds_the_same(tmp_path):
    questions = read_questions("hellaswag", f"{HERE}/questions.jsonl")
    write_eval(tmp_path / "questions.bin", questions)
    assert read_questions("hellaswag", f"{tmp_path}/questions.bin") == questions


def lines(*objects) -> str:
    return "\n".join(json.dumps(item) for item in objects)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            lines(GOOD, GOOD | dict(label=2)),
            r"a\.jsonl, line 2 has the label 2; .*1",
        ),
        ("a.jsonl", lines(GOOD | dict(label=-1)), "line 1 has the label -1; it must be from 0"),
        ("a.jsonl", lines(GOOD | dict(label=True)), "line 1 has the label True"),
        ("a.jsonl", lines(GOOD) + "\n\n{", r"a\.jsonl, line 3 is not JSON \(Expecting prop"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl, line 1 is not JSON \(maximum recursion depth"),
        ("a.jsonl", "1" * 5000, r"a\.jsonl, line 1 is not JSON \(Exceeds the limit"),
        ("a.jsonl", lines(GOOD | dict(label="1" * 5000)), "line 1 has the label '1"),
        ("a.jsonl", lines(dict(ctx="A", endings=["b", "c"])), "line 1 is not a question of Hella"),
        ("a.jsonl", lines(GOOD | dict(endings=["b"])), "line 1 is not a question of HellaSwag"),
        ("a.jsonl", lines(GOOD | dict(endings=["b", "c", 3])), "line 1: an ending is not text"),
        ("a.jsonl", "[1]", "line 1 is not a question of HellaSwag"),
        ("a.jsonl", b"\xff\xfe{", r"a\.jsonl is not text in UTF-8"),
        ("a.jsonl", "\n", r"a\.jsonl holds no question"),
        ("a.csv", "", r"a\.csv holds no question"),
        ("a.csv", "Q?,1,2,3,4,A\nQ?,1,2,3,A\n", r"a\.csv, line 2 has 5 columns; MMLU's have 6"),
        ("a.csv", "Q?,1,2,3,4,E\n", "line 1 has the answer 'E'; it must be one of A, B, C and D"),
        ("a.csv", "Q?,1,2,3,4,AB\n", "line 1 has the answer 'AB'"),
        ("a.csv", 'Q?,1,2,3,4,A\n"Q?,1', r"a\.csv, line 2 is not CSV \(unexpected end"),
        ("a.csv", b"\xff\xfe,1,2,3,4,A", r"a\.csv is not text in UTF-8"),
        ("a.bin", "", r"a\.bin is not an evaluation file of llm\.c"),
        ("a.txt", "", r"--questions=.*a\.txt does not end in one of \.jsonl, \.csv, \.bin"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_bad_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInput, match=message):
        read_questions("questions", f"{tmp_path}/{name}")


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (Example([1], [[2], [3]], 2), "example 0 has label 2 of 2 completions"),
        (Example([1], [[2], []], 0), "example 0 has no two endings, or an empty one"),
        (Example([1], [[2]], 0), "example 0 has no two endings"),
    ],
)
def test_a_bad_file_of_llm_c_is_refused(tmp_path, example, message):
    write_eval(tmp_path / "a.bin", [example])
    with pytest.raises(BadInput, match=message):
        read_questions("hellaswag", f"{tmp_path}/a.bin")


def test_what_is_not_there_is_named():
    with pytest.raises(BadInput, match=r"--mmlu=/nowhere/\*\.csv matches no file"):
        read_questions("mmlu", "/nowhere/*.csv")


def test_contexts_are_cut_from_their_beginning():
    """Alike for all endings: the longest, of 3 tokens, leaves 30 of 33 to the context."""
    fits = Example(list(range(30)), [[1, 2, 3], [4]], 0)
    long = Example(list(range(40)), [[1, 2, 3], [4]], 1)
    questions, cut = fit_questions("file", [fits, long], MODEL, 32)
    assert questions == [fits, Example(list(range(10, 40)), [[1, 2, 3], [4]], 1)] and cut == 1
    whole = Example([5, 6], [[1] * 32, [4]], 0)
    assert fit_questions("file", [whole], MODEL, 32) == ([whole._replace(context=[6])], 1)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (
            Example([1], [[2] * 33, [3]], 0),
            r"file: question 1 has an ending of 33 tokens, and the context is 32; take it out\.$",
        ),
        (Example([1], [[2], [50257]], 0), "file: question 1 has the token 50257, .* ends at 50256"),
    ],
)
def test_questions_that_do_not_fit_the_model_are_refused(example, message):
    with pytest.raises(BadInput, match=message):
        fit_questions("file", [Example([1], [[2], [3]], 0), example], MODEL, 32)


def test_an_ending_too_long_for_the_context_may_fit_the_model():
    with pytest.raises(BadInput, match=r"context is 8; .* a --sequence_length of up to 32"):
        fit_questions("file", [Example([1], [[2] * 9, [3]], 0)], MODEL, 8)


def test_mmlu_is_unpacked_once(tmp_path, monkeypatch):
    """What is not data/test/*.csv stays in the archive; what is there is not fetched again."""
    for name in ("data/test/a_test.csv", "data/dev/a_dev.csv", "data/README.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / "questions.csv", tmp_path / name)
    archive = tmp_path / "made.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "data", "data")
    monkeypatch.setattr(fetch, "download", lambda url, path: archive)
    folder = tmp_path / "evaluation"
    folder.mkdir()
    assert len(read_questions("mmlu", fetch.fetch_mmlu(folder))) == 8
    assert [path.name for path in folder.rglob("*")] == ["mmlu_test", "a_test.csv"]
    archive.unlink()
    assert len(read_questions("mmlu", fetch.fetch_mmlu(folder))) == 8


def test_a_broken_archive_is_named(tmp_path, monkeypatch):
    archive = tmp_path / "mmlu_data.tar"
    archive.write_bytes(b"not an archive")
    monkeypatch.setattr(fetch, "download", lambda url, path: archive)
    with pytest.raises(BadInput, match=r"mmlu_data\.tar is not an archive, or a broken one"):
        fetch.fetch_mmlu(tmp_path)
    assert list(tmp_path.iterdir()) == [archive]
