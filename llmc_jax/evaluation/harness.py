"""What EleutherAI's lm-evaluation-harness asks of a model, in plain Python.

llmc_jax/lm_eval.py hands it to the harness; here nothing of the harness is imported. Texts become
tokens as in the harness's own adapter for Hugging Face (lm_eval/models/huggingface.py), so that
its published numbers can be compared with.
"""

from collections.abc import Sequence
from typing import NamedTuple

from llmc_jax.config import BadInput
from llmc_jax.data.tokenizer import EOT, token_bytes, tokenizer
from llmc_jax.evaluation.scorer import Row, make_scorer
from llmc_jax.generation.sampler import make_sampler
from llmc_jax.trained import Opened

NEW_TOKENS = 256  # where a task does not say how many
# What lm_eval calls the number of tokens; the first of those that are given counts.
COUNTS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
KNOWN = {"until", *COUNTS, "do_sample", "temperature", "top_k", "top_p"}


class Asked(NamedTuple):
    """The options of a request for text."""

    until: list[str]
    count: int  # of tokens, at most
    choose: dict  # the sampler's options


class Harness:
    """A model that answers the three kinds of requests."""

    def __init__(self, opened: Opened, *, batch_size: int):
        """batch_size: rows on each device."""
        trained, mesh, ops, T, dtype = opened
        self._params, self._T, self._V = trained.params, T, trained.model.V
        sizes = dict(batch_size=batch_size, likeliest=True, progress=True)
        self._score = make_scorer(ops, trained.model, dtype, mesh, **sizes)
        self._sample = make_sampler(ops, trained.model, dtype)

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """For each (context, continuation): the continuation's log-probability, in nats, and
        whether each of its tokens was the likeliest.

        A context that is too long loses its beginning. Raises BadInput where a continuation alone
        is too long.
        """
        rows = []
        for context, continuation in pairs:
            before, after = encode_pair(context, continuation)
            if len(after) > self._T:
                raise BadInput(
                    f"a continuation of {len(after)} tokens was asked for, and the model takes "
                    f"{self._T}: {continuation[:60]!r}..."
                )
            rows.append(Row((before + after)[-self._T - 1 :], len(after)))
        return [(_log_probability(s), bool(s.likeliest.all())) for s in self._scores(rows)]

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[float]:
        """For each text the log-probability of all its tokens, after the end of another text.

        Each token is predicted once; the last T of a long text have a full context.
        """
        rows, owners = [], []
        for owner, text in enumerate(texts):
            windows = _windows([EOT, *tokenizer().encode_ordinary(text)], self._T)
            rows += windows
            owners += [owner] * len(windows)
        totals = [0.0] * len(texts)
        for owner, score in zip(owners, self._scores(rows), strict=True):
            totals[owner] += _log_probability(score)
        return totals

    def generate_until(self, requests: Sequence[tuple[str, dict]]) -> list[str]:
        """For each (context, options) a continuation that ends before the first of the texts
        options["until"], or with max_gen_toks tokens; the likeliest tokens unless do_sample, or a
        temperature above 0 without it. Raises BadInput, before the first is made, for options that
        are not known."""
        asked = [(context, _asked(options)) for context, options in requests]
        return [self._generate(*request, seed=seed) for seed, request in enumerate(asked)]

    def _generate(self, context: str, asked: Asked, *, seed: int) -> str:
        count = min(asked.count, self._T - 1)
        prompt = tokenizer().encode_ordinary(context)[-(self._T - count) :] or [EOT]
        self._refuse_unknown(prompt)
        choose = asked.choose | dict(top_k=min(asked.choose["top_k"], self._V))
        written, text = b"", ""
        for token in self._sample(self._params, prompt, count, seed=seed, **choose):
            if token == EOT:
                break
            written += token_bytes(tokenizer(), token)
            text = written.decode(errors="replace")
            if found := [text.index(end) for end in asked.until if end in text]:
                return text[: min(found)]
        return text

    def _scores(self, rows: list[Row]):
        for row in rows:
            self._refuse_unknown(row.tokens)
        return self._score(self._params, rows)

    def _refuse_unknown(self, tokens: Sequence[int]) -> None:
        """Raises BadInput where there is a token that the model does not have."""
        if (largest := max(tokens)) >= self._V:
            raise BadInput(
                f"the text has token {largest} of GPT-2's tokenizer, but the model's vocabulary "
                f"ends at {self._V - 1}."
            )


def encode_pair(context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Tokens of both, cut where the context's end; its trailing spaces go to the continuation."""
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    encode = tokenizer().encode_ordinary
    if not context:
        return [EOT], encode(continuation)
    before = encode(context)
    return before, encode(context + continuation)[len(before) :]


def _asked(options: dict) -> Asked:
    """The options as lm_eval understands them (models/utils.py, normalize_gen_kwargs). Raises
    BadInput for those that are not known and would change the text."""
    known = KNOWN | {"num_beams"} if options.get("num_beams") == 1 else KNOWN
    if unknown := sorted(options.keys() - known):
        raise BadInput(
            f"generation with {', '.join(unknown)} is not supported; known are "
            f"{', '.join(sorted(KNOWN))}."
        )
    until = options.get("until") or []
    until = [until] if isinstance(until, str) else [end for end in until if end]
    counts = (options[name] for name in COUNTS if options.get(name) is not None)
    count = int(next(counts, NEW_TOKENS))
    sample = options.get("do_sample")
    temperature = float(options.get("temperature", 0.0 if sample is None else 1.0))
    if (sample is not None and not sample) or temperature <= 0:
        return Asked(until, count, dict(top_k=1))
    top_k, top_p = int(options.get("top_k", 0)), float(options.get("top_p", 1))
    return Asked(until, count, dict(top_k=top_k, top_p=top_p, temperature=temperature))


def _windows(tokens: list[int], T: int) -> list[Row]:
    """Rows that predict all tokens but the first, each once, T inputs at a time."""
    rows = []
    for begin in range(0, len(tokens) - 1, T):
        end = min(begin + T, len(tokens) - 1)
        rows.append(Row(tokens[max(0, end - T) : end + 1], end - begin))
    return rows


def _log_probability(score) -> float:
    return -float(score.losses.sum(dtype="float64"))
