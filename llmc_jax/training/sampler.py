"""Text from a model, one token at a time, seeded; the whole context is computed for each."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from llmc_jax.config import ModelConfig
from llmc_jax.models import gpt2
from llmc_jax.models.gpt2 import Params
from llmc_jax.ops import Ops

SEED = 1337  # as llm.c's sampler
TEMPERATURE = 1.0
TOP_K = 40  # as llm.c's train_gpt2.py


def make_sampler(ops: Ops, model: ModelConfig, dtype: str) -> Callable:
    """A function sample(params, prompt, count, ...) of a model that computes in `dtype`."""

    @partial(jax.jit, static_argnames="top_k")
    def next_token(params, window, last, key, temperature, *, top_k):
        """A token after window[0, last]; window (1,T) int32."""
        scores = gpt2.logits_at(ops, params, window, last, cfg=model)[0]
        likeliest, tokens = lax.top_k(scores, top_k)
        return tokens[jax.random.categorical(key, likeliest / temperature)]

    @jax.jit
    def cast(params):
        return gpt2.cast(params, dtype)

    def sample(
        params: Params,
        prompt: list[int],
        count: int,
        *,
        seed: int = SEED,
        temperature: float = TEMPERATURE,
        top_k: int = TOP_K,
    ) -> Iterator[int]:
        """`count` tokens after `prompt` (not empty), drawn from the top_k likeliest at each place.

        top_k is from 1 to V. Past the longest sequence the model knows, the oldest tokens are
        forgotten.
        """
        params = cast(params)
        tokens = list(prompt)
        T = min(len(prompt) + count, model.maxT)
        for number in range(count):
            context = tokens[-T:]
            window = jnp.array([context + [0] * (T - len(context))], jnp.int32)
            key = jax.random.fold_in(jax.random.key(seed), number)
            last = len(context) - 1
            token = next_token(params, window, last, key, temperature, top_k=top_k)
            tokens.append(int(token))
            yield tokens[-1]

    return sample
