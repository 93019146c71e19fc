"""PyTorch's training step on a GPU, with all that makes it fast there.

Two recipes. "autocast" is nanoGPT's: float32 parameters, torch.autocast. "bf16": the parameters
are rounded to bfloat16 at the top of the compiled function, so that everything, the residual
stream too, is bfloat16 and gradients come to float32 parameters. Both: torch.compile of forward
and backward, SDPA by a named backend, fused AdamW, clipping to a norm of 1.

As a program: one step of each, so that the compiler's cache is full.
"""

import dataclasses
import traceback
from collections.abc import Callable
from contextlib import nullcontext

from absl import app

from benchmarks.gpu_stages import results
from benchmarks.gpu_stages.sizes import sizes
from llmc_jax.contestant import Task

RECIPES = ("bf16", "autocast")
BACKENDS = {"cudnn": "CUDNN_ATTENTION", "flash": "FLASH_ATTENTION"}


def task(ops: str = "") -> Task:
    """What all contestants do."""
    B, T, model, *_ = sizes()
    return Task(model=model, B=B, T=T, dtype="bfloat16", ops=ops)


def prepare(recipe: str, backend: str) -> Callable:
    """A function that makes a step and returns its loss, a tensor nobody has waited for."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from benchmarks.rivals.pytorch import GPT2, initialize, make_optimizer

    todo, device = task(), results.torch_device()
    chosen = SDPBackend.MATH if device == "cpu" else getattr(SDPBackend, BACKENDS[backend])
    model = GPT2(**dataclasses.asdict(todo.model)).to(device)
    initialize(model, todo.seed)
    named = dict(model.named_parameters())
    params = list(named.values())
    optimizer = make_optimizer(
        params, learning_rate=todo.learning_rate, weight_decay=todo.weight_decay
    )
    batch = [torch.tensor(x, dtype=torch.int64, device=device) for x in todo.batch()]

    def rounded(inputs, targets):
        weights = {name: p.to(torch.bfloat16) for name, p in named.items()}
        return torch.func.functional_call(model, weights, (inputs, targets))

    compiled = torch.compile(rounded if recipe == "bf16" else model)

    def autocast():
        if recipe == "bf16":
            return nullcontext()
        return torch.autocast(device, dtype=torch.bfloat16)

    def step():
        with sdpa_kernel(chosen):
            with autocast():
                loss = compiled(*batch)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def main(_) -> None:
    for backend in BACKENDS:
        for recipe in RECIPES:
            try:
                print(f"warm: {recipe} {backend}: {prepare(recipe, backend)().item()}")
            except Exception:  # the stage that needs it will say so
                traceback.print_exc()


if __name__ == "__main__":
    app.run(main)
