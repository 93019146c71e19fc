"""Texts from the cache: those without it, alone or together; where they end, and how they slide."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmc_jax import ops
from llmc_jax.generation.draw import Choice, draw
from llmc_jax.generation.sampler import make_generator, make_sampler
from llmc_jax.models import gpt2
from tests import tiny

MODEL = dataclasses.replace(tiny.MODEL, maxT=48)
PROMPTS = [[5, 6, 7], [8], [40, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]]
AUTO = ops.select("auto", "cpu")[0]
UNCACHED = jax.jit(lambda params, tokens: gpt2.logits(AUTO, params, tokens, cfg=MODEL))

DRAW = jax.jit(draw, static_argnames=("top_k", "top_p"))


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape), jnp.float32), gpt2.shapes(MODEL)
    )


@pytest.fixture(scope="module")
def generate():
    return make_generator(AUTO, MODEL, "float32")


def texts(generate, params, prompts, count, **options):
    """What was generated for each prompt, and how many lists of tokens there were."""
    options = dict(seeds=[7] * len(prompts)) | options
    steps = list(generate(params, prompts, count, **options))
    rows = [[t for t in row if t is not None] for row in zip(*steps, strict=True)]
    for row, step_row in zip(rows, zip(*steps, strict=True), strict=True):
        assert list(step_row) == row + [None] * (len(steps) - len(row))  # an ended text stays so
    return rows, len(steps)


def uncached(params, prompt, count, seed, choice, context):
    """`count` tokens from the logits of the whole text; context(tokens): what is looked at."""
    tokens = list(prompt)
    for number in range(count):
        window = context(tokens)
        inputs = np.zeros((1, MODEL.maxT), np.int32)
        inputs[0, : len(window)] = window
        logits = UNCACHED(params, inputs)[:, len(window) - 1]
        seeds = np.array([seed], np.uint32)
        token = DRAW(logits, seeds, number, choice[0], top_k=choice.top_k, top_p=choice.top_p)
        tokens.append(int(token[0]))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("choice", [Choice(), Choice(top_k=1), Choice(1.5, 0, 0.9)], ids=str)
def test_texts_are_those_without_a_cache(params, generate, choice):
    rows, steps = texts(generate, params, PROMPTS, 20, seeds=[1, 2, 3], choice=choice)
    assert steps == 20
    for prompt, seed, row in zip(PROMPTS, (1, 2, 3), rows, strict=True):
        assert row == uncached(params, prompt, 20, seed, choice, lambda tokens: tokens)


def test_a_text_does_not_depend_on_those_beside_it(params, generate):
    together, _ = texts(generate, params, PROMPTS, 16)
    for prompt, row in zip(PROMPTS, together, strict=True):
        assert texts(generate, params, [prompt], 16)[0] == [row]
    twice, _ = texts(generate, params, [PROMPTS[0]] * 2, 16, seeds=[7, 8])
    assert twice[0] == together[0] != twice[1]


def test_temperature_zero_takes_the_likeliest(params, generate):
    greedy, _ = texts(generate, params, PROMPTS, 8, choice=Choice(temperature=0, top_p=0.5))
    assert greedy == texts(generate, params, PROMPTS, 8, choice=Choice(top_k=1), seeds=[0, 1, 2])[0]


def test_a_text_ends_before_the_end_while_others_go_on(params, generate):
    rows, _ = texts(generate, params, PROMPTS, 20)
    end = rows[0][4]
    wanted = [row[: row.index(end)] if end in row else row for row in rows]
    got, steps = texts(generate, params, PROMPTS, 20, end=end)
    assert got == wanted and len(got[0]) <= 4 and max(map(len, got)) > len(got[0])
    assert steps == 20 or steps == max(map(len, got)) + 1


def test_a_text_ends_where_the_context_is_full(params, generate):
    """The last token needs no place: one more than the context holds."""
    rows, steps = texts(generate, params, PROMPTS, 100)
    assert [len(row) for row in rows] == [49 - len(prompt) for prompt in PROMPTS]
    assert steps == 48
    short = make_generator(AUTO, MODEL, "float32", T=16)
    less, _ = texts(short, params, PROMPTS, 100)
    assert less == [row[: 17 - len(prompt)] for row, prompt in zip(rows, PROMPTS, strict=True)]


def test_a_text_slides_by_half_its_context(params):
    """Its own, whenever that is full, whatever those beside it do."""
    T, generate = 16, make_generator(AUTO, MODEL, "float32", T=16)

    def context(tokens):
        if len(tokens) <= T:
            return tokens
        return tokens[-(T // 2 + (len(tokens) - T - 1) % (T // 2 + 1)) :]

    rows, steps = texts(generate, params, PROMPTS, 40, slide=True)
    assert steps == 40
    for prompt, row in zip(PROMPTS, rows, strict=True):
        assert row == uncached(params, prompt, 40, 7, Choice(), context)
    end = rows[1][30]
    got, _ = texts(generate, params, PROMPTS, 40, slide=True, end=end)
    assert got == [row[: row.index(end)] if end in row else row for row in rows]
    long = [1, 2, 3] * 10
    assert texts(generate, params, [long], 3) == texts(generate, params, [long[-T:]], 3)


def test_a_context_length_is_compiled_once(params):
    """Prompts of any length and other choices take the step that is there."""
    steps = []

    def counted(*args, **options):
        steps.append(None)  # runs when it is traced
        return AUTO.cached_attention(*args, **options)

    generate = make_generator(AUTO._replace(cached_attention=counted), MODEL, "float32")
    texts(generate, params, [[1, 2]], 10)
    assert len(steps) == MODEL.L
    texts(generate, params, [[1, 2, 3]], 20, choice=Choice(0.5, 7, 0.9), seeds=[3])
    assert len(steps) == MODEL.L
    texts(generate, params, [[1, 2, 3]], 40)
    assert len(steps) == 2 * MODEL.L


def test_bfloat16_weights_are_cast_once(params):
    generate = make_generator(AUTO, MODEL, "bfloat16")
    rows, _ = texts(generate, params, PROMPTS[:1], 6)
    assert texts(generate, gpt2.cast(params, "bfloat16"), PROMPTS[:1], 6)[0] == rows


def test_the_sampler_of_training_never_ends(params):
    sample = make_sampler(AUTO, MODEL, "float32")
    tokens = list(sample(params, [3], 70))
    assert len(tokens) == 70 and tokens == list(sample(params, [3], 70, seed=1337))
    assert tokens[:20] == uncached(params, [3], 20, 1337, Choice(), lambda tokens: tokens)
