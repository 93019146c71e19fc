"""Text from a model, one token at a time, seeded; the whole context is computed for each."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from llmc_jax.config import ModelConfig
from llmc_jax.models import gpt2
from llmc_jax.models.gpt2 import Params
from llmc_jax.ops import Ops

SEED = 1337  # as llm.c's sampler
TEMPERATURE = 0.8  # a little below what the model believes: fewer slips in short samples
TOP_K = 40  # as llm.c's train_gpt2.py


def make_sampler(ops: Ops, model: ModelConfig, dtype: str) -> Callable:
    """A function sample(params, prompt, count, ...) of a model that computes in `dtype`."""

    @jax.jit
    def next_token(params, window, last, key, temperature, top_k):
        """A token after window[0, last]; window (1,T) int32."""
        scores = gpt2.logits_at(ops, gpt2.cast(params, dtype), window, last, cfg=model)[0]
        kth = jnp.sort(scores)[-top_k]
        scores = jnp.where(scores < kth, -jnp.inf, scores / temperature)
        return jax.random.categorical(key, scores)

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
        tokens = list(prompt)
        T = min(len(prompt) + count, model.maxT)
        for number in range(count):
            context = tokens[-T:]
            window = jnp.array([context + [0] * (T - len(context))], jnp.int32)
            key = jax.random.fold_in(jax.random.key(seed), number)
            token = int(next_token(params, window, len(context) - 1, key, temperature, top_k))
            tokens.append(token)
            yield token

    return sample
