"""The same run on 1, 2, 4 and 8 devices, one or two processes, every mapper and stage of ZeRO; and
what each device holds.

    python -m benchmarks.devices curves --model=tiny     # or d6
    python -m benchmarks.devices memory

curves: 20 steps in float32 on virtual CPU devices; the largest relative difference of a loss from
one device's, and exit status 1 where it is above 1e-5 or where a run gives other numbers the second
time. memory: XLA's plan for a step of GPT-2 124M on 8 devices, against the arithmetic.
"""

import argparse
import itertools
import json
import math
import socket
import subprocess
import sys

LIMIT = 1e-5
SEQUENCES = 8  # in a step


def run_cases(model: str, cases: list[dict], processes: int = 1) -> list[dict]:
    """What tests/curve.py says of each case."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    each = max(case["devices"] for case in cases) // processes if processes > 1 else 8
    task = json.dumps(dict(model=model, cases=cases, processes=processes, each=each))
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.curve", task, str(port), str(number)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(processes)
    ]  # fmt: skip
    output, errors = zip(*(process.communicate() for process in started), strict=True)
    if any(process.returncode for process in started):
        raise SystemExit("".join(errors))
    lines = output[0].splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def matrix(model: str) -> list[tuple[int, list[dict]]]:
    """(processes, cases) of everything that goes together."""
    fixed = dict(sequence_length=16, total_batch_size=SEQUENCES * 16)
    if model != "tiny":  # determinism of d6 is shown by the largest cases
        fixed |= dict(repeat=1, learning_rate=6e-4)

    def case(devices: int, stage: int, **options) -> dict:
        again = dict(repeat=2) if (devices, stage) in ((8, 0), (8, 3)) else {}
        both = dict(devices=devices, zero_stage=stage, batch_size=max(1, 4 // devices))
        return fixed | both | again | options

    groups = [(1, [case(1, 0)])]
    for devices in (2, 4, 8):
        stages = [case(devices, stage) for stage in range(4)]
        groups += [(1, [case(devices, 0, mapper="pmap"), *stages]), (2, stages)]
    return groups


def curves(model: str, some_devices: list[int], some_processes: list[int]) -> int:
    """Print a row for each case with so many devices and processes, and one; the exit status."""
    print(
        "| processes | devices | mapper | ZeRO | collectives | step, ms | last loss "
        "| largest difference |"
    )
    print("|---|---|---|---|---|---|---|---|")
    reference, worst = None, 0.0
    wanted = list(itertools.product(some_devices, some_processes))
    for processes, cases in matrix(model):
        alone = cases[0]["devices"] == 1
        if not alone and (cases[0]["devices"], processes) not in wanted:
            continue
        for result in run_cases(model, cases, processes):
            case, losses = result["case"], result["losses"]
            reference = reference or losses
            pairs = zip(losses, reference, strict=True)
            difference = max(abs(loss - wanted) / wanted for loss, wanted in pairs)
            worst = max(worst, difference)
            held = ", ".join(f"{n} {name}" for name, n in sorted(result["collectives"].items()))
            print(
                f"| {processes} | {case['devices']} | {case.get('mapper', 'shard_map')} | "
                f"{case['zero_stage']} | {held or 'none'} | {1000 * result['step_s']:.0f} | "
                f"{losses[-1]:.6f} | {difference:.1e} |",
                flush=True,
            )
    print(f"\n{model}: the largest difference is {worst:.1e}, the limit {LIMIT}")
    return int(worst > LIMIT)


def memory(stages: list[int]) -> int:
    """Print what each device holds of GPT-2 124M by stage, on 8 devices."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    from llmc_jax import ops
    from llmc_jax.config import MODELS, TrainConfig
    from llmc_jax.models import gpt2
    from llmc_jax.training import memory, parallel, placement
    from llmc_jax.training.step import state_shapes
    from llmc_jax.training.zero import part_size

    model, mesh, MiB = MODELS["d12"], parallel.make_mesh(), 2**20
    sizes = [math.prod(x.shape) for x in jax.tree.leaves(gpt2.shapes(model))]
    whole, part = 4 * sum(sizes) / MiB, 4 * sum(part_size(n, 8) for n in sizes) / MiB
    print(f"parameters {whole:.1f} MiB, a part {part:.1f} MiB, in float32\n")
    print(
        "| ZeRO | parameters | moments | accumulated gradients | parameters and moments by XLA "
        "| temporary by XLA | all of it |\n|---|---|---|---|---|---|---|"
    )
    for stage in stages:
        cfg = TrainConfig(
            model="d12", max_steps=1, batch_size=1, sequence_length=64, zero_stage=stage
        )
        mapped = parallel.map_train_step(ops.select("ffi", "cpu")[0], model, cfg, mesh)
        state = placement.state_like(state_shapes(model), mesh, cfg)
        batch = placement.micro_batches_like((2, 8, 64), mesh)
        compiled = mapped.lower(state, [], batch, batch).compile()
        plan = compiled.memory_analysis()
        held = [part if stage >= 3 else whole, 2 * (part if stage >= 1 else whole)]
        held.append(part if stage >= 2 else whole)
        print(
            f"| {stage} | {held[0]:.1f} | {held[1]:.1f} | {held[2]:.1f} | "
            f"{plan.argument_size_in_bytes / MiB:.1f} (computed {held[0] + held[1]:.1f}) | "
            f"{plan.temp_size_in_bytes / MiB:.1f} | {memory.planned_bytes(compiled) / MiB:.1f} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=("curves", "memory"))
    parser.add_argument("--model", default="tiny", choices=("tiny", "d6"))
    parser.add_argument("--devices", type=int, nargs="+", default=[2, 4, 8], help="which of them")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="which of them")
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3], help="of memory")
    options = parser.parse_args()
    every = options.model, options.devices, options.processes
    sys.exit(curves(*every) if options.what == "curves" else memory(options.stages))
