"""How fast batches come from shards, how long it takes to go on somewhere, how long steps wait.

    python benchmarks/loader.py [--rounds=5] [--grain] [--train]

Two uneven shards of random tokens, in the page cache. A batch counts when it is on the device.
--grain: the same sequences through google/grain (pip install grain), in turn with ours. --train:
the share of the time in which d12's training stood waiting for data, from its metrics.jsonl.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from llmc_jax import machine, train
from llmc_jax.config import TrainConfig, model_config
from llmc_jax.data.loader import TokenLoader
from llmc_jax.data.tokens import read_shard, write_shard
from llmc_jax.training.logger import read_metrics

B, T, V = 64, 1024, 50257
BATCHES = 200  # in a round
SIZES = (60_000_000, 41_234_567)
POSITIONS = (0, 10**6, 10**9, 10**12)


def write_shards(folder: Path) -> str:
    """The shards, and the pattern that names them."""
    rng = np.random.default_rng(0)
    for number, size in enumerate(SIZES):
        write_shard(folder / f"{number}.bin", rng.integers(0, V, size, np.uint16))
    return f"{folder}/*.bin"


def open_loader(pattern: str, **options) -> TokenLoader:
    return TokenLoader("train_data", pattern, T=T, V=V, shuffle=True, **options)


def tokens_per_s(batches) -> float:
    """Of BATCHES batches (inputs and targets), each on the device."""
    device, began = jax.devices()[0], time.perf_counter()
    for _ in range(BATCHES):
        jax.block_until_ready(jax.device_put(next(batches), device))
    return BATCHES * B * T / (time.perf_counter() - began)


def ours(pattern: str):
    loader, position = open_loader(pattern), 0
    while True:
        yield loader.read(position, B)
        position += B


def through_grain(pattern: str):
    """The same sequences in Grain's random order, as its documentation has it."""
    import grain

    class Sequences:
        """Rows of T+1 tokens; a data source of Grain."""

        def __init__(self, path: Path):
            self._tokens = np.asarray(read_shard(path))

        def __len__(self):
            return (len(self._tokens) - 1) // T

        def __getitem__(self, index):
            tokens = self._tokens[index * T : (index + 1) * T + 1].astype(np.int32)
            return tokens[:-1], tokens[1:]

    shards = sorted(Path(pattern).parent.glob("*.bin"))
    parts = [grain.MapDataset.source(Sequences(path)) for path in shards]
    return iter(grain.MapDataset.concatenate(parts).shuffle(seed=0).repeat().batch(B))


def restore_ms(pattern: str, position: int, **options) -> float:
    """Milliseconds until a loader that has read nothing yet has the batch at `position`."""
    loader = open_loader(pattern, **options)
    began = time.perf_counter()
    loader.read(position, B)
    return 1000 * (time.perf_counter() - began)


def waiting_share(folder: Path, sequence_length: int, steps: int) -> tuple[float, float, float]:
    """Of d12's training with B=4: seconds a step, longest wait for a batch, share of waiting."""
    tokens = np.random.default_rng(0).integers(0, V, 8 * sequence_length * (steps + 1), np.uint16)
    write_shard(folder / "text.bin", tokens)
    cfg = TrainConfig(
        train_data=f"{folder}/text.bin", output_dir=f"{folder}/run{sequence_length}",
        sequence_length=sequence_length, max_steps=steps, val_every=0, sample_every=0,
        dtype="bfloat16",
    )  # fmt: skip
    assert model_config(cfg.model).L == 12
    train.main(cfg)
    lines = read_metrics(Path(cfg.output_dir, "metrics.jsonl"))[1:]
    times, waits = ([line[name] for line in lines] for name in ("step_time_s", "data_wait_s"))
    return statistics.median(times), max(waits), sum(waits) / sum(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--grain", action="store_true")
    parser.add_argument("--train", action="store_true")
    args = parser.parse_args()
    print(machine.describe(*(["grain"] if args.grain else [])))
    with tempfile.TemporaryDirectory() as folder:
        pattern = write_shards(Path(folder))
        sources = dict(loader=ours(pattern))
        mix = ",".join(f"{folder}/{n}.bin:{w}" for n, w in enumerate((0.7, 0.3)))
        sources["loader, two sets mixed"] = ours(mix)
        if args.grain:
            sources["grain"] = through_grain(pattern)
        rounds = [
            {name: tokens_per_s(batches) for name, batches in sources.items()}
            for _ in range(args.rounds + 1)
        ][1:]
        for name in sources:
            rates = [r[name] / 1e6 for r in rounds]
            print(
                f"{name}: {statistics.median(rates):.0f} million tokens/s "
                f"({min(rates):.0f} to {max(rates):.0f})"
            )
        for position in POSITIONS:
            took = statistics.median(restore_ms(pattern, position) for _ in range(args.rounds))
            print(f"first batch at position {position:,}: {took:.2f} ms")
        if args.train:
            for length, steps in ((64, 20), (1024, 4)):
                step, wait, share = waiting_share(Path(folder), length, steps)
                print(
                    f"d12, B=4, T={length}: {step:.2f} s a step, longest wait {1000 * wait:.2f} "
                    f"ms, waiting {share:.3%} of the time"
                )


if __name__ == "__main__":
    main()
