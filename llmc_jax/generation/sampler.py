"""Texts from a model, token by token, many at once: seeded, with a cache of keys and values.

A text follows from the weights, its prompt, its seed and the choice of tokens; not from the texts
beside it (only where logits are equal to the last bits a batch of more than 16 may differ).
"""

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from llmc_jax.config import ModelConfig
from llmc_jax.generation.draw import Choice, draw
from llmc_jax.models import gpt2, gpt2_decode
from llmc_jax.models.gpt2 import Params
from llmc_jax.models.lengths import padded_length
from llmc_jax.ops import Ops

SEED = 1337  # as llm.c's sampler

_cast = jax.jit(gpt2.cast, static_argnames="dtype")
_prefill = jax.jit(gpt2_decode.prefill, static_argnames=("ops", "cfg", "S"))
_step = jax.jit(gpt2_decode.step, static_argnames=("ops", "cfg"), donate_argnames="cache")
_draw = jax.jit(draw, static_argnames=("top_k", "top_p"))


def make_generator(ops: Ops, model: ModelConfig, dtype: str, T: int | None = None) -> Callable:
    """A function generate(params, prompts, count, ...) of a model that computes in `dtype`.

    T: tokens of context at most; None: as many as the model can take.
    """
    T = T or model.maxT

    def start(params, contexts, S):
        """The logits after each context, a cache of S places, and the contexts' lengths."""
        lengths = np.array([len(context) for context in contexts], np.int32)
        inputs = np.zeros((len(contexts), padded_length(lengths.max(), T)), np.int32)
        for row, context in zip(inputs, contexts, strict=True):
            row[: len(context)] = context
        return *_prefill(ops, params, inputs, lengths, cfg=model, S=S), lengths

    def generate(
        params: Params,
        prompts: Sequence[Sequence[int]],
        count: int,
        *,
        seeds: Sequence[int],
        choice: Choice = Choice(),  # noqa: B008 (it is a tuple)
        end: int | None = None,
        slide: bool = False,
    ) -> Iterator[list[int | None]]:
        """At most `count` tokens after each prompt: lists with the next token of each text, None
        where it has ended.

        prompts: none empty. A text ends before the token `end`, and where the context is full;
        unless `slide`: then it goes on with the last half of the context, as if that were its
        prompt. Of a prompt longer than T the last T tokens are taken. params: already cast to
        `dtype` (gpt2.cast), or else that is done first.
        """
        params = _cast(params, dtype)
        if choice.temperature == 0:
            choice = Choice(top_k=1)
        static = dict(top_k=choice.top_k, top_p=choice.top_p)
        seeds = np.array([seed % 2**32 for seed in seeds], np.uint32)
        contexts = [list(prompt)[-T:] for prompt in prompts]
        S = padded_length(min(max(map(len, contexts)) + count, T), T)
        ended = np.zeros(len(contexts), bool)
        logits, cache, lengths = start(params, contexts, S)
        for number in range(count):
            tokens = _draw(logits, seeds, number, choice.temperature, **static)
            full = ~ended & (lengths >= T)
            slides = slide and full.any()
            if not slides and number + 1 < count:  # to be computed while the tokens are looked at
                places = np.minimum(lengths, S - 1)  # of a text that has ended: anywhere
                logits, cache = _step(ops, params, cache, tokens, places, cfg=model)
                lengths = lengths + 1
            tokens = jax.device_get(tokens)
            ended |= tokens == (-1 if end is None else end)
            yield [None if e else int(t) for e, t in zip(ended, tokens, strict=True)]
            if not slide:
                ended |= full
            if ended.all():
                return
            for context, token in zip(contexts, tokens, strict=True):
                context.append(int(token))
            if slides and number + 1 < count:
                contexts = _slid(contexts, full, ended, T)
                logits, cache, lengths = start(params, contexts, S)

    return generate


def _slid(contexts, full, ended, T):
    """With what the texts go on: the last half of full contexts, others whole; those of texts that
    have ended do not matter, and are short."""
    kept = np.where(full, max(T // 2, 1), np.where(ended, 1, T))
    return [context[-n:] for context, n in zip(contexts, kept, strict=True)]


def make_sampler(ops: Ops, model: ModelConfig, dtype: str) -> Callable:
    """A function sample(params, prompt, count, ...) of a model that computes in `dtype`."""
    generate = make_generator(ops, model, dtype)

    def sample(
        params: Params, prompt: Sequence[int], count: int, *, seed: int = SEED, **choice
    ) -> Iterator[int]:
        """`count` tokens after `prompt` (not empty); choice: the fields of Choice.

        Past the longest context the text slides, as `generate` has it.
        """
        chosen = dict(seeds=[seed], choice=Choice(**choice), slide=True)
        for (token,) in generate(params, [prompt], count, **chosen):
            yield token

    return sample
