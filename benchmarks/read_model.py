"""How long reading a 124M model file takes, against reading its bytes once.

    python benchmarks/read_model.py

Both in turn, the file in the page cache, medians of 9. read_model alone only maps the file, so each
of its numbers is looked at once, where it is mapped.
"""

import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from llmc_jax import machine
from llmc_jax.config import model_config
from llmc_jax.interop import llmc
from llmc_jax.models.initialize import initialize


def read_bytes(path: Path) -> None:
    np.fromfile(path, np.uint8)


def read_model(path: Path) -> None:
    for tensor in jax.tree.leaves(llmc.read_model(path)[1]):
        np.bitwise_or.reduce(tensor.reshape(-1).view(np.uint32))


def seconds(read, path: Path) -> float:
    began = time.perf_counter()
    read(path)
    return time.perf_counter() - began


def main() -> None:
    print(machine.describe())
    with tempfile.TemporaryDirectory() as folder:
        cfg = model_config("d12")
        params = initialize(cfg, 42)
        for dtype in ("float32", "bfloat16"):
            path = Path(folder) / f"{dtype}.bin"
            llmc.write_model(path, cfg, params, dtype=dtype)
            times = [(seconds(read_bytes, path), seconds(read_model, path)) for _ in range(10)]
            once, model = (statistics.median(t) for t in zip(*times[1:], strict=True))
            print(
                f"{dtype}: bytes {1e3 * once:.0f} ms, model {1e3 * model:.0f} ms, "
                f"ratio {model / once:.2f}"
            )


if __name__ == "__main__":
    main()
