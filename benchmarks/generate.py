"""Tokens a second of d12, against transformers' generate with its cache on the same weights.

    pip install -e .[dev,interop]
    python benchmarks/generate.py [--dtypes=float32,bfloat16] [--rounds=5] [--ops=auto,jnp]

Greedy, random weights, 16 tokens of prompt, the new tokens with the prompt's time; both in turn in
one process, medians. A step must read all weights once: what it reads a second is printed beside.
"""

import statistics
import tempfile
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from absl import app, flags

from llmc_jax import ffi, machine, ops
from llmc_jax.config import model_config
from llmc_jax.generation.draw import Choice
from llmc_jax.generation.sampler import make_generator
from llmc_jax.interop import huggingface
from llmc_jax.models import gpt2
from llmc_jax.models.initialize import initialize

DTYPES = flags.DEFINE_list("dtypes", ["float32", "bfloat16"], "types to compute in")
BATCHES = flags.DEFINE_list("batches", ["1", "8"], "prompts at a time")
TOKENS = flags.DEFINE_integer("tokens", 128, "new tokens")
OPS = flags.DEFINE_list("ops", ["auto"], "our implementations, e.g. auto,jnp")
ROUNDS = flags.DEFINE_integer("rounds", 5, "timed runs of each")

PROMPT = 16  # tokens
CFG = model_config("d12")


def ours(params, dtype: str, ops_spec: str):
    """A function of prompts (B,T) and a count: the texts, (B,T+count)."""
    chosen, _ = ops.select(ops_spec, jax.default_backend())
    params = jax.jit(partial(gpt2.cast, dtype=dtype))(params)
    generate = make_generator(chosen, CFG, dtype)

    def run(prompts, count):
        options = dict(seeds=[0] * len(prompts), choice=Choice(temperature=0))
        new = list(generate(params, prompts.tolist(), count, **options))
        return np.concatenate([prompts, np.array(new).T], axis=1)

    return run


def theirs(folder: str, dtype: str):
    """The same by transformers."""
    model = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    model.generation_config.eos_token_id = None  # texts of the same length

    def run(prompts, count):
        inputs = torch.tensor(prompts)
        lengths = dict(max_new_tokens=count, min_new_tokens=count)
        rest = dict(do_sample=False, use_cache=True, pad_token_id=0)
        with torch.inference_mode():
            mask = torch.ones_like(inputs)
            return model.generate(inputs, attention_mask=mask, **lengths, **rest).numpy()

    return run


def seconds(call) -> tuple[float, object]:
    began = time.perf_counter()
    result = jax.block_until_ready(call())
    return time.perf_counter() - began, result


def main(_):
    ffi.require("cpu")
    print(
        f"{machine.describe('torch', 'transformers')}; {torch.get_num_threads()} threads of torch"
    )
    params = initialize(CFG, 42)
    # of wpe a step reads a row
    count = sum(w.size for w in jax.tree.leaves(params._replace(wpe=np.zeros(1))))
    columns = (
        "dtype",
        "prompts",
        "program",
        "tokens/s",
        "min-max",
        "ms a step",
        "speed",
        "GB/s of weights",
    )
    print(f"| {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        huggingface.write_model(f"{folder}/d12", CFG, jax.tree.map(np.asarray, params))
        for dtype in DTYPES.value:
            programs = {"transformers": theirs(f"{folder}/d12", dtype)}
            programs |= {f"llmc_jax --ops={spec}": ours(params, dtype, spec) for spec in OPS.value}
            for B in map(int, BATCHES.value):
                compare(dtype, B, programs, count * jnp.dtype(dtype).itemsize)


def compare(dtype: str, B: int, programs: dict, size: int) -> None:
    """Time the programs on B prompts in turn, and print a row for each; size: bytes of weights."""
    prompts = np.random.default_rng(0).integers(0, CFG.V, (B, PROMPT))
    times, texts = {name: [] for name in programs}, {}
    for run in programs.values():
        run(prompts, TOKENS.value)  # compiles
    for _ in range(ROUNDS.value):
        for name, run in programs.items():
            took, texts[name] = seconds(lambda run=run: run(prompts, TOKENS.value))
            times[name].append(took)
    reference = statistics.median(times["transformers"])
    for name, took in times.items():
        median, count = statistics.median(took), B * TOKENS.value
        step = median / TOKENS.value
        print(
            f"| {dtype} | {B} | {name} | {count / median:.1f} | "
            f"{count / max(took):.1f}-{count / min(took):.1f} | {1e3 * step:.1f} | "
            f"{reference / median:.2f}x | {size / step / 1e9:.1f} |",
            flush=True,
        )
    first, second, *_ = texts.values()
    print(f"{dtype}, {B}: {np.mean(first == second):.0%} of the tokens are equal", flush=True)


if __name__ == "__main__":
    app.run(main)
