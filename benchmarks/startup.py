"""How long a run takes from the command to its first step: with an empty cache, and again.

    python benchmarks/startup.py --data='data/pystdlib/pystdlib_train_*.bin'

d12, B=4, T=64, bfloat16, a process each: a first start (no compiled program is kept yet), a second
(they are), and one without a cache, in turn, medians of --repeats. What is timed is the whole
process, which makes one step and validates, samples and writes nothing; behind it the time of its
processors, which says more where others use them too. --ops as in training: with jnp everything is
XLA's to compile. --tree runs another checkout beside it, to compare with what was before.
"""

import argparse
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from llmc_jax import machine

FLAGS = (
    "--model=d12", "--batch_size=4", "--sequence_length=64", "--dtype=bfloat16", "--max_steps=1",
    "--val_every=0", "--sample_every=0",
)  # fmt: skip


def start(tree: Path, *flags: str) -> tuple[float, float, str]:
    """Seconds and processor seconds of a process that makes one step, and what it says of them."""
    command = [sys.executable, "-m", "llmc_jax.train", *FLAGS, *flags]
    began, busy = time.perf_counter(), _processors_s()
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True)
    said = re.search(r"started in .*", done.stdout)
    return time.perf_counter() - began, _processors_s() - busy, said[0] if said else ""


def _processors_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help="glob of token shards")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ops", default="auto")
    parser.add_argument("--tree", type=Path, help="another checkout")
    options = parser.parse_args()
    flags = f"--train_data={Path(options.data).absolute()}", f"--ops={options.ops}"
    here = Path(__file__).parent.parent
    runs: dict[str, list] = {}
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as cache:
            kept = f"--compilation_cache={cache}"
            if options.tree:
                runs.setdefault("before", []).append(start(options.tree, *flags))
            runs.setdefault("first", []).append(start(here, *flags, kept))
            runs.setdefault("second", []).append(start(here, *flags, kept))
            runs.setdefault("off", []).append(start(here, *flags, "--compilation_cache=off"))
    print(machine.describe())
    for name, results in runs.items():
        wall = statistics.median_low(result[0] for result in results)
        busy = statistics.median(result[1] for result in results)
        spread = ", ".join(f"{result[0]:.2f}" for result in results)
        said = next(result[2] for result in results if result[0] == wall)
        print(f"{name:7} {wall:.2f} s ({spread}), {busy:.2f} s of processors; {said}")


if __name__ == "__main__":
    main()
