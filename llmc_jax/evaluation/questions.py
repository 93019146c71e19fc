"""Multiple-choice questions as tokens, from HellaSwag's, MMLU's and llm.c's files.

Reference: llm.c dev/data/hellaswag.py and mmlu.py (render_example): the context and the endings
are tokenized apart, and each ending begins with a space.
"""

import csv
import glob
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from llmc_jax.config import BadInput
from llmc_jax.data.tokenizer import EOT, tokenizer
from llmc_jax.interop.llmc_text import Example, read_eval

LETTERS = ["A", "B", "C", "D"]  # MMLU's answers
MMLU_COLUMNS = 6  # question, four answers, the letter of the right one


def read_questions(flag: str, pattern: str) -> list[Example]:
    """The questions of all files that match the glob `pattern`, in the order of their names.

    A file is told by its ending: .jsonl (HellaSwag), .csv (MMLU), .bin (llm.c). Raises BadInput
    where a file, or a line of it, is not what it should be; `flag` is the option that named it.
    """
    paths = sorted(glob.glob(pattern))
    if not paths:
        raise BadInput(f"--{flag}={pattern} matches no file; correct the name or the pattern.")
    questions = []
    for path in paths:
        read = READERS.get(Path(path).suffix)
        if read is None:
            raise BadInput(
                f"--{flag}={path} does not end in one of {', '.join(READERS)}: HellaSwag's JSON "
                f"lines, MMLU's CSV, llm.c's evaluation file."
            )
        found = read(path)
        if not found:
            raise BadInput(f"{path} holds no question.")
        questions += found
    return questions


def _read_llmc(path: str) -> list[Example]:
    examples = read_eval(path)
    for number, example in enumerate(examples):
        if len(example.completions) < 2 or not all(example.completions):
            raise BadInput(f"{path}: example {number} has no two endings, or an empty one.")
    return [question(*example) for example in examples]


def _read_hellaswag(path: str) -> list[Example]:
    """An object a line, with ctx, endings and label, among others."""
    return [_of_hellaswag(line, place) for place, line in _lines(path)]


def _of_hellaswag(line: str, place: str) -> Example:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:  # also numbers too long, and lists too deep
        raise BadInput(f"{place} is not JSON ({error}); download the file again.") from error
    match item:
        case {"ctx": str(context), "endings": [str(), str(), *_] as endings, "label": label}:
            if not all(isinstance(ending, str) for ending in endings):
                raise BadInput(f"{place}: an ending is not text.")
            # Hugging Face's copy of the data has the label as text.
            written = isinstance(label, str) and label.isdecimal() and len(label) < 9
            index = int(label) if written else label
            if type(index) is not int or not 0 <= index < len(endings):
                raise BadInput(
                    f"{place} has the label {label!r}; it must be from 0 to {len(endings) - 1} "
                    f"(HellaSwag's test split has none: use val)."
                )
            return _encode(context, endings, index)
    raise BadInput(
        f"{place} is not a question of HellaSwag: ctx (text), endings (two texts or more) and "
        f"label are needed."
    )


def _read_mmlu(path: str) -> list[Example]:
    """A row a question. Answers stay as they are written; pandas, in llm.c's script, makes numbers
    of columns that hold nothing else."""
    with _opened(path) as file:
        rows, questions = csv.reader(file, strict=True), []
        try:
            for row in rows:
                questions.append(_of_mmlu(row, f"{path}, line {rows.line_num}"))
        except csv.Error as error:
            raise BadInput(f"{path}, line {rows.line_num} is not CSV ({error}).") from error
        except UnicodeDecodeError as error:
            raise _not_text(path) from error
    return questions


def _of_mmlu(row: list[str], place: str) -> Example:
    if len(row) != MMLU_COLUMNS:
        raise BadInput(
            f"{place} has {len(row)} columns; MMLU's have {MMLU_COLUMNS}: the question, four "
            f"answers, the letter of the right one."
        )
    asked, *answers, letter = row
    if letter not in LETTERS:
        raise BadInput(f"{place} has the answer {letter!r}; it must be one of A, B, C and D.")
    return _encode(f"Question: {asked}\n\nAnswer:", answers, LETTERS.index(letter))


READERS = {".jsonl": _read_hellaswag, ".csv": _read_mmlu, ".bin": _read_llmc}


def _encode(context: str, endings: list[str], label: int) -> Example:
    encode = tokenizer().encode_ordinary
    return question(encode(context), [encode(" " + ending) for ending in endings], label)


def question(context: list[int], completions: list[list[int]], label: int) -> Example:
    """A question; where there is no context, the endings follow the end of a document."""
    return Example(context or [EOT], completions, label)


def _lines(path: str) -> Iterator[tuple[str, str]]:
    """(where it is, the line) of each line that is not blank."""
    with _opened(path) as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}, line {number}", line
        except UnicodeDecodeError as error:
            raise _not_text(path) from error


def _opened(path: str) -> TextIO:
    try:
        return open(path, encoding="utf-8", newline="")
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}.") from error


def _not_text(path: str) -> BadInput:
    return BadInput(f"{path} is not text in UTF-8; download the file again.")
