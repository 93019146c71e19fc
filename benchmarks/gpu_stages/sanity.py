"""Is this machine what it seems to be: clocks, versions, and whether JAX computes rightly here."""

import hashlib
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu_stages import stage, timing
from benchmarks.gpu_stages.sizes import sizes
from benchmarks.gpu_stages.stage import Row, Skip
from llmc_jax import machine

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "torch", "triton", "nvidia-cudnn-cu13")
# Of nvidia-smi -q; it is only asked, nothing is set.
WANTED = (
    "Product Name", "Driver Version", "CUDA Version", "SM", "Memory", "Current Power Limit",
    "Persistence Mode", "MIG Mode", "Performance State", "GPU Current Temp", "Total", "Used",
)  # fmt: skip


def rows() -> list[Row]:
    return [
        Row("gpu", "nvidia-smi", gpu, 20),
        Row("versions", "python", versions, 20),
        Row("five ops", "jax", five_ops, 40),
        *(
            Row(f"scatter-add {dtype}, {where}", "jax", lambda d=dtype, w=where: scatter(d, w), 20)
            for dtype in ("float32", "bfloat16")
            for where in ("random tokens", "one token")
        ),
    ]


def gpu() -> dict:
    if not shutil.which("nvidia-smi"):
        raise Skip("there is no nvidia-smi")
    said = subprocess.run(["nvidia-smi", "-q"], capture_output=True, text=True, check=True).stdout
    pairs = [line.split(" : ", 1) for line in said.splitlines() if " : " in line]
    wanted = [f"{k.strip()}: {v.strip()}" for k, v in pairs if k.strip() in WANTED]
    return {"nvidia-smi": list(dict.fromkeys(wanted))}


def versions() -> dict:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    devices = [f"{d.platform} {d.device_kind}" for d in jax.devices()]
    return dict(machine=machine.describe(), sources=sources(), devices=devices, **found)


def sources() -> str:
    """A number for what is measured, where no git came along."""
    digest = hashlib.sha256()
    for folder in ("ffi", "llmc_jax"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".cc", ".cu", ".h", ".cuh"):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def five_ops() -> dict:
    """Each op eager and compiled against numpy: jax 0.11.0 with CUDA 13 was wrong (jax#40633)."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 1024, 1024)).astype(np.float32)
    ops = {
        "add": lambda m, x, y: x + y,
        "exp": lambda m, x, y: m.exp(x) * y,
        "sum": lambda m, x, y: m.sum(x * y, axis=0),
        "where": lambda m, x, y: m.where(x > y, x, -y),
        "matmul": lambda m, x, y: m.matmul(x, y.T),
    }
    wrong = []
    with jax.default_matmul_precision("highest"):
        for name, op in ops.items():
            wanted = op(np, x.astype(np.float64), y.astype(np.float64))
            for how, fn in (("eager", op), ("jit", jax.jit(op, static_argnums=0))):
                result = np.asarray(fn(jnp, jnp.asarray(x), jnp.asarray(y)), np.float64)
                if not np.linalg.norm(result - wanted) <= 1e-5 * np.linalg.norm(wanted):
                    wrong.append(f"{name} {how}")
    if wrong:
        raise ArithmeticError(f"wrong: {', '.join(wrong)}")
    return dict(ok=True)


def scatter(dtype: str, where: str) -> dict:
    """at[].add of B*T rows, which loops where atomics are emulated (jax#38806)."""
    B, T, model, *_ = sizes()
    key = jax.random.key(0)
    rows = jax.random.normal(key, (B * T, model.C), dtype)
    tokens = jax.random.randint(key, (B * T,), 0, model.Vp if where == "random tokens" else 1)
    table = [jnp.zeros((model.Vp, model.C), dtype)]
    add = jax.jit(lambda table, tokens, rows: table.at[tokens].add(rows), donate_argnums=0)

    def call(_):
        table[0] = add(table[0], tokens, rows)
        return table[0]

    ms = timing.of_jax(call, [None])
    return dict(ms=round(ms, 4), tbs=round(3 * rows.nbytes / ms / 1e9, 3))


if __name__ == "__main__":
    stage.run("sanity", rows)
