"""The same GPT-2 as a PyTorch user would train it on a CPU, with all that makes PyTorch fast there.

A contestant of python -m llmc_jax.bench: torch.compile, scaled_dot_product_attention, fused AdamW,
bfloat16 by autocast. Parameters are drawn as the package draws them; no code of its training is
used. The softmax runs over all rows of the padded table, which is faster here than over the V
tokens that there are; the loss is then greater by at most log(Vp / V).
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

from llmc_jax.contestant import Task, serve

STD = 0.02  # of the initial weights


class Block(nn.Module):
    """Attention, then the MLP, each behind a layernorm and added to the residual stream."""

    def __init__(self, C, NH):
        super().__init__()
        self.NH = NH
        self.ln1, self.ln2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.qkv, self.attproj = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.fc, self.fcproj = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x):
        x = x + self.attproj(self.attention(self.qkv(self.ln1(x))))
        return x + self.fcproj(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))

    def attention(self, qkv):
        """Causal attention of all heads, (B,T,3C) to (B,T,C)."""
        B, T, C = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        q, k, v = (x.view(B, T, self.NH, C // self.NH).transpose(1, 2) for x in qkv.split(C, -1))
        atty = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return atty.transpose(1, 2).reshape(B, T, C)


class GPT2(nn.Module):
    """From inputs and targets (B,T) to the mean loss; the head is the token embedding."""

    def __init__(self, L, NH, C, maxT, V, Vp):
        super().__init__()
        self.V = V
        self.wte, self.wpe = nn.Embedding(Vp, C), nn.Embedding(maxT, C)
        self.blocks = nn.ModuleList(Block(C, NH) for _ in range(L))
        self.lnf = nn.LayerNorm(C)

    def forward(self, inputs, targets):
        x = self.wte(inputs) + self.wpe.weight[: inputs.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.lnf(x), self.wte.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


@torch.no_grad()
def initialize(model: GPT2, seed: int) -> None:
    """GPT-2's initial numbers, drawn in llm.c's order."""
    torch.manual_seed(seed)
    residual_std = STD / (2 * len(model.blocks)) ** 0.5
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
    model.wte.weight[: model.V].normal_(0, STD)
    model.wte.weight[model.V :].zero_()
    model.wpe.weight.normal_(0, STD)
    for block in model.blocks:
        block.qkv.weight.normal_(0, STD)
        block.attproj.weight.normal_(0, residual_std)
        block.fc.weight.normal_(0, STD)
        block.fcproj.weight.normal_(0, residual_std)


def make_optimizer(params, *, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """Fused AdamW that decays the matrices only."""
    groups = [
        dict(params=[p for p in params if p.ndim >= 2], weight_decay=weight_decay),
        dict(params=[p for p in params if p.ndim < 2], weight_decay=0.0),
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)


def prepare(task: Task):
    """A function that makes one step and returns its loss."""
    model = GPT2(**dataclasses.asdict(task.model))
    initialize(model, task.seed)
    params = list(model.parameters())
    optimizer = make_optimizer(
        params, learning_rate=task.learning_rate, weight_decay=task.weight_decay
    )
    compiled = torch.compile(model)
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=task.dtype == "bfloat16")
    inputs, targets = (torch.tensor(x, dtype=torch.int64) for x in task.batch())

    def step() -> float:
        with autocast:
            loss = compiled(inputs, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


if __name__ == "__main__":
    serve(prepare)
