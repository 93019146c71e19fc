"""llm.c's tokenizer and multiple-choice evaluation files.

Reference: llm.c train_gpt2.py (write_tokenizer), dev/data/data_common.py (write_evalfile),
llmc/tokenizer.h, llmc/dataloader.h (EvalLoader).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from llmc_jax.config import BadInput
from llmc_jax.files import new_file
from llmc_jax.interop.llmc import HEADER_BYTES, check_size, read_header, write_header

TOKENIZER_MAGIC, TOKENIZER_VERSION = 20240328, 2
EVAL_MAGIC, EVAL_VERSION = 20240522, 1
EXAMPLE_START = 65535
EXAMPLE_HEADER = 5  # uint16: start, bytes, index, label, completions


class Example(NamedTuple):
    """A question with several endings, as tokens."""

    context: list[int]
    completions: list[list[int]]
    label: int  # index of the right one


def read_tokenizer(path: str | Path) -> tuple[list[bytes], int]:
    """(the bytes of each token, the number of the end-of-text token)."""
    header = read_header(path, TOKENIZER_MAGIC, (TOKENIZER_VERSION,), "a tokenizer of llm.c")
    vocabulary, eot = int(header[2]), int(header[3])
    body = Path(path).read_bytes()[HEADER_BYTES:]
    tokens, at = [], 0
    for _ in range(vocabulary):
        if at >= len(body) or at + 1 + body[at] > len(body):
            raise BadInput(
                f"{path} is truncated: it has {len(tokens)} of {vocabulary} tokens; copy it again."
            )
        tokens.append(body[at + 1 : at + 1 + body[at]])
        at += 1 + body[at]
    check_size(path, HEADER_BYTES + at)
    return tokens, eot


def write_tokenizer(
    path: str | Path, tokens: list[bytes], eot: int, *, overwrite: bool = False
) -> None:
    """Write a tokenizer that llm.c can decode with; a token has at most 255 bytes."""
    with new_file(path, overwrite=overwrite) as file:
        write_header(file, [TOKENIZER_MAGIC, TOKENIZER_VERSION, len(tokens), eot])
        for token in tokens:
            file.write(bytes([len(token)]) + token)


def read_eval(path: str | Path) -> list[Example]:
    """The examples of an evaluation file (HellaSwag). Raises BadInput where it is broken."""
    header = read_header(path, EVAL_MAGIC, (EVAL_VERSION,), "an evaluation file of llm.c")
    numbers = np.fromfile(path, "<u2", offset=HEADER_BYTES).tolist()
    examples, at = [], 0
    for index in range(int(header[2])):
        start, size, number, label, count = (numbers[at : at + EXAMPLE_HEADER] + [0] * 5)[:5]
        if start != EXAMPLE_START or number != index or size % 2 or at + size // 2 > len(numbers):
            raise BadInput(f"{path} is truncated or broken at example {index}; copy it again.")
        end = at + size // 2
        lists, at = _lists(numbers[at + EXAMPLE_HEADER : end], count + 1), end
        if lists is None or label >= count:
            raise BadInput(f"{path}: example {index} has label {label} of {count} completions.")
        examples.append(Example(lists[0], lists[1:], label))
    check_size(path, HEADER_BYTES + 2 * at)
    return examples


def write_eval(path: str | Path, examples: list[Example], *, overwrite: bool = False) -> None:
    """Write an evaluation file that llm.c can read."""
    encoded = [_encode(index, example) for index, example in enumerate(examples)]
    longest = max((2 * len(numbers) for numbers in encoded), default=0)
    with new_file(path, overwrite=overwrite) as file:
        write_header(file, [EVAL_MAGIC, EVAL_VERSION, len(examples), longest])
        for numbers in encoded:
            file.write(np.array(numbers, "<u2").tobytes())


def _encode(index: int, example: Example) -> list[int]:
    """An example as uint16; its header holds its own size in bytes."""
    body = []
    for tokens in (example.context, *example.completions):
        body += [len(tokens), *tokens]
    size = 2 * (EXAMPLE_HEADER + len(body))
    if max(index, size, *body) > 65535:
        raise BadInput(f"example {index} does not fit llm.c's 16 bits: it is too long or too late.")
    return [EXAMPLE_START, size, index, example.label, len(example.completions), *body]


def _lists(numbers: list[int], count: int) -> list[list[int]] | None:
    """`count` lists, each behind its length; None if they do not fill `numbers` exactly."""
    lists, at = [], 0
    for _ in range(count):
        if at >= len(numbers):
            return None
        lists.append(numbers[at + 1 : at + 1 + numbers[at]])
        at += 1 + numbers[at]
    return lists if at == len(numbers) else None
