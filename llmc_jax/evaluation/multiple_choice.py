"""Which ending of a question a model finds likeliest (llm.c dev/data/hellaswag.py, mmlu.py).

Each ending is a row of its own behind the context. Its loss is the sum over its tokens (acc) or
their mean (acc_norm, the number that llm.c logs in training); the smallest is the choice.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from llmc_jax.config import BadInput, ModelConfig
from llmc_jax.evaluation.scorer import Row
from llmc_jax.interop.llmc_text import Example
from llmc_jax.models.gpt2 import Params


class Answer(NamedTuple):
    """What a model says to one question; losses in nats, one for each ending."""

    label: int
    sums: list[float]
    means: list[float]

    @property
    def choice(self) -> int:
        return int(np.argmin(self.sums))

    @property
    def choice_norm(self) -> int:
        return int(np.argmin(self.means))


class Accuracy(NamedTuple):
    """Fractions of questions answered rightly, and their standard errors."""

    acc: float
    acc_stderr: float
    acc_norm: float
    acc_norm_stderr: float
    questions: int


def fit_questions(
    what: str, questions: Sequence[Example], model: ModelConfig, T: int
) -> tuple[list[Example], int]:
    """(the questions with contexts cut to what T inputs can hold, how many were cut).

    A context is cut from its beginning, alike for all endings of a question, so that they stay
    comparable. Raises BadInput where an ending alone is too long, or a token is none of the
    model's. what: where the questions are from, for errors.
    """
    fitting, cut = [], 0
    for number, (context, completions, label) in enumerate(questions):
        longest = max(map(len, completions))
        if longest > T:
            more = f", or give a --sequence_length of up to {model.maxT}" if model.maxT > T else ""
            raise BadInput(
                f"{what}: question {number} has an ending of {longest} tokens, and the context is "
                f"{T}; take it out{more}."
            )
        largest = max(max(tokens) for tokens in (context, *completions))
        if largest >= model.V:
            raise BadInput(
                f"{what}: question {number} has the token {largest}, but the model's vocabulary "
                f"ends at {model.V - 1}; it was made for another tokenizer."
            )
        room = T + 1 - longest
        cut += len(context) > room
        fitting.append(Example(context[-room:], completions, label))
    return fitting, cut


def answer(score: Callable, params: Params, questions: Sequence[Example]) -> list[Answer]:
    """The model's answers. score: of scorer.make_scorer; questions: of fit_questions."""
    rows = [
        Row(question.context + tokens, len(tokens))
        for question in questions
        for tokens in question.completions
    ]
    scores = iter(score(params, rows))
    answers = []
    for question in questions:
        losses = [next(scores).losses.astype(np.float64) for _ in question.completions]
        sums, means = [float(x.sum()) for x in losses], [float(x.mean()) for x in losses]
        answers.append(Answer(question.label, sums, means))
    return answers


def accuracy(answers: Sequence[Answer]) -> Accuracy:
    """How many of the answers (at least one) are right."""
    n = len(answers)
    acc = sum(a.choice == a.label for a in answers) / n
    acc_norm = sum(a.choice_norm == a.label for a in answers) / n
    return Accuracy(acc, _stderr(acc, n), acc_norm, _stderr(acc_norm, n), n)


def _stderr(fraction: float, n: int) -> float:
    return math.sqrt(fraction * (1 - fraction) / n)
