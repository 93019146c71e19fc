"""A plan: how long a step would take on 8, 64 and 512 GPUs of the H100's class; nothing measured.

    python -m benchmarks.scaling [--mfu=0.45 --overlap=0.7 ...]

Operations and messages are those of the compiled step (a device's HLO, on 8 virtual CPU devices,
one micro-batch, --ops=jnp, bfloat16) at one and two layers, extended to all. Speeds are assumed,
each a flag. Compute goes at --mfu of the GPU's peak, AdamW at the memory's speed, messages in rings
in a node (--nvlink) and between nodes (--network), where every GPU has its share of the message.
Gradients of a layer are sent while those of the layers before are computed, and stage 3's
parameters a layer ahead: that hides --overlap of the time of that computation at most. What stages
1 and 2 gather after the update hides behind nothing.
"""

import argparse
import dataclasses
import math
import re
from functools import partial
from typing import NamedTuple

import jax

from llmc_jax import ops
from llmc_jax.config import MODELS, ModelConfig, TrainConfig
from llmc_jax.training import parallel, placement
from llmc_jax.training.step import state_shapes

NODE = 8  # GPUs
T = 1024
SIZES = {"bf16": 2, "f32": 4, "s32": 4, "pred": 1}
COLLECTIVE = re.compile(
    r"= (?P<type>.*?) (?P<name>all-reduce|reduce-scatter|all-gather)(?:-start)?\("
)


class Cost(NamedTuple):
    """What one device does in a step of one micro-batch of one sequence."""

    flops: float
    all_reduce: float  # bytes of the whole array, however many messages
    reduce_scatter: float
    all_gather: float
    messages: float

    def along(self, two: "Cost", layers: int) -> "Cost":
        """The cost of `layers` layers, given that of one (self) and of two."""
        return Cost(*(a + (layers - 1) * (b - a) for a, b in zip(self, two, strict=True)))


class Machine(NamedTuple):
    """Assumptions; each is a flag of the same name."""

    peak: float = 989e12  # flop/s, bfloat16, dense
    mfu: float = 0.45  # of it that the computation reaches
    memory: float = 3.35e12  # bytes/s
    nvlink: float = 450e9  # bytes/s of a GPU in a node, each direction
    network: float = 50e9  # bytes/s of a GPU to other nodes: 400 Gb/s
    latency: float = 20e-6  # s of a message in a node
    hop: float = 5e-6  # s more for each doubling of the nodes
    combined: float = 31457280  # bytes up to which XLA puts messages together
    overlap: float = 0.7  # of the computation that messages can hide behind


def shape_bytes(text: str) -> int:
    """Bytes of the arrays in an HLO type."""
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", text)
    return sum(SIZES[t] * math.prod(map(int, filter(None, d.split(",")))) for t, d in arrays)


def compiled_cost(model: ModelConfig, stage: int) -> Cost:
    """The cost of a model that is small enough to be compiled here."""
    mesh = parallel.make_mesh()
    cfg = TrainConfig(
        max_steps=1,
        batch_size=1,
        sequence_length=T,
        dtype="bfloat16",
        zero_stage=stage,
        recompute=0,
    )
    state = placement.state_like(state_shapes(model), mesh, cfg)
    batch = placement.micro_batches_like((1, mesh.size, T), mesh)
    mapped = parallel.map_train_step(ops.select("jnp", "cpu")[0], model, cfg, mesh)
    compiled = mapped.lower(state, [], batch, batch).compile()
    sent, messages = {"all-reduce": 0, "reduce-scatter": 0, "all-gather": 0}, 0
    for match in COLLECTIVE.finditer(compiled.as_text()):
        parts = mesh.size if match["name"] == "reduce-scatter" else 1  # its result is a part
        sent[match["name"]] += parts * shape_bytes(match["type"])
        messages += match["type"].count("[")
    if stage == 3:  # parts are sent in bfloat16, for which XLA:CPU takes float32
        sent["all-gather"] /= 2
    return Cost(compiled.cost_analysis()["flops"], *sent.values(), messages)


def one_way(size: float, messages: float, devices: int, machine: Machine) -> float:
    """Seconds of a reduce-scatter or an all-gather of `size` bytes; an all-reduce is both."""
    inside, nodes = min(NODE, devices), max(1, devices // NODE)
    seconds = (inside - 1) / inside * size / machine.nvlink
    seconds += (nodes - 1) / nodes * size / inside / machine.network
    count = min(messages, max(1, size / machine.combined))
    return seconds + count * (machine.latency + machine.hop * math.log2(nodes))


class Step(NamedTuple):
    """A predicted step."""

    seconds: float
    exposed: float  # of them spent waiting for messages
    efficiency: float  # speed of a GPU, against one alone with as many tokens; above 1 where AdamW,
    # in parts, saves more than messages cost


def predict(
    model: ModelConfig, cost: Cost, stage: int, devices: int, sequences: int, machine: Machine
) -> Step:
    """A step in which each GPU computes `sequences` in one micro-batch."""
    n = model.num_parameters
    compute = sequences * cost.flops / (machine.peak * machine.mfu)
    adamw = 28 * n / machine.memory
    alone = compute + adamw
    way = partial(one_way, messages=cost.messages / 2, devices=devices, machine=machine)
    if stage == 0:
        hidden, bare = 2 * way(cost.all_reduce), 0.0
    elif stage < 3:
        hidden, bare = way(cost.reduce_scatter), way(cost.all_gather)
    else:
        hidden, bare = way(cost.reduce_scatter) + way(cost.all_gather), 0.0
    behind = compute * (1.0 if stage == 3 else 2 / 3)  # backward is two thirds
    exposed = max(0.0, hidden - machine.overlap * behind) + bare
    seconds = compute + exposed + (adamw / devices if stage else adamw)
    return Step(seconds, exposed, alone / seconds)


def state_gib(model: ModelConfig, stage: int, devices: int) -> float:
    """Parameters, moments and gradients of a GPU in float32, and the bfloat16 copy."""
    n = model.num_parameters
    params = 4 / (devices if stage >= 3 else 1) + (2 / model.L if stage >= 3 else 2)
    moments = 8 / (devices if stage >= 1 else 1)
    grads = 4 / (devices if stage >= 2 else 1)
    return n * (params + moments + grads) / 2**30


def main(names: list[str], stages: list[int], machine: Machine) -> None:
    """Print the assumptions, what is sent, and the two tables."""
    print("Assumed: " + ", ".join(f"{k} {v:g}" for k, v in machine._asdict().items()) + "\n")
    costs = {}
    print("| model | ZeRO | Tflop a sequence | all-reduce | reduce-scatter | all-gather | arrays |")
    print("|---|---|---|---|---|---|---|")
    for name in names:
        for stage in stages:
            one, two = (
                compiled_cost(dataclasses.replace(MODELS[name], L=layers), stage)
                for layers in (1, 2)
            )
            cost = costs[name, stage] = one.along(two, MODELS[name].L)
            sent = " | ".join(f"{x / 1e6:,.0f} MB" for x in cost[1:4])
            print(f"| {name} | {stage} | {cost.flops / 1e12:.2f} | {sent} | {cost.messages:.0f} |")
    for title, sequences_of in (
        ("64 sequences (65,536 tokens) a GPU", lambda devices: 64),
        ("524,288 tokens over all GPUs, where each has at least one sequence",
         lambda devices: 512 // devices),
    ):  # fmt: skip
        print(f"\n{title}: milliseconds a step, of which waiting for messages; efficiency\n")
        print("| model | ZeRO | 8 | 64 | 512 | state a GPU at 64 |\n|---|---|---|---|---|---|")
        for (name, stage), cost in costs.items():
            cells = []
            for devices in (8, 64, 512):
                step = predict(MODELS[name], cost, stage, devices, sequences_of(devices), machine)
                cells.append(
                    f"{1e3 * step.seconds:.1f}, {1e3 * step.exposed:.1f}; {step.efficiency:.0%}"
                )
            gib = state_gib(MODELS[name], stage, 64)
            print(f"| {name} | {stage} | {' | '.join(cells)} | {gib:.2f} GiB |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    for field, value in Machine()._asdict().items():
        parser.add_argument(f"--{field}", type=float, default=value)
    parser.add_argument("--models", default="d12,d24,d36,d48")
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 3])
    options = vars(parser.parse_args())
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", NODE)
    names, stages = options.pop("models").split(","), options.pop("stages")
    main(names, stages, Machine(**options))
