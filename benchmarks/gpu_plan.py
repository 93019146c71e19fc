"""The training step compiled for an H100 that need not be there: what XLA plans, and with what.

    pip install jax-cuda13-pjrt==0.10.1 jax-cuda13-plugin==0.10.1       # as jaxlib is
    python -m benchmarks.gpu_plan [--model d12] [--B 64] [--T 1024] [--ops auto]

Needs libllmc_cuda.so, and no GPU: XLA is told what an H100 is, and tries no algorithms of products.
Prints a row for each step: its memory by `llmc_jax.plan` and by XLA, how many of the products that
cuBLAS makes write float32 (that of wte's gradient does), and how many apply the GELU as they write.
"""

import argparse
import re
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from llmc_jax import ffi, machine, ops
from llmc_jax.config import RECOMPUTE, BadInput, ModelConfig, TrainConfig, model_config
from llmc_jax.training import memory, parallel, placement
from llmc_jax.training.step import state_shapes
from llmc_jax.training.zero import AXIS

# XLA's description of the device, by its datasheet and CUDA's deviceQuery.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 cuda_compute_capability { major: 9 }
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 84978434048
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
COLUMNS = (
    "devices", "ZeRO", "micro-batches", "dtype", "recompute", "told, GiB", "XLA's, GiB",
    "told is off by", "products in float32", "GELUs in one",
)  # fmt: skip
GELU = re.compile(r'"epilogue":"BIAS_GELU')
CUBLAS = re.compile(r"= \(?(\w+)\[[\d,]*\].*custom_call_target=\"__cublas")


def cases(options) -> Iterator[tuple[int, dict]]:
    """Devices and options of the steps: every --recompute, micro-batches, float32, ZeRO."""
    for recompute in RECOMPUTE:
        yield 1, dict(recompute=recompute)
    yield 1, dict(micro_batches=4)
    yield 1, dict(dtype="float32")
    for stage in range(4):
        yield 8, dict(zero_stage=stage)


def topology(devices: int):
    """So many H100s; NotImplementedError without a plugin for them."""
    return topologies.get_topology_desc("", "cuda", target_config=H100, topology=f"1x1x{devices}")


def compiled(chosen: ops.Ops, model: ModelConfig, cfg: TrainConfig, devices: int):
    """The step for so many H100s."""
    mesh = Mesh(np.array(topology(devices).devices), (AXIS,))
    rows, T = cfg.batch_size * devices, cfg.sequence_length
    state = placement.state_like(state_shapes(model), mesh, cfg)
    batch = placement.micro_batches_like((cfg.total_batch_size // (rows * T), rows, T), mesh)
    lowered = parallel.map_train_step(chosen, model, cfg, mesh).lower(state, [], batch, batch)
    return lowered.compile({"xla_gpu_autotune_level": 0} | parallel.compile_options(mesh))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="d12")
    parser.add_argument("--ops", default="auto")
    parser.add_argument("--B", type=int, default=64)
    parser.add_argument("--T", type=int, default=1024)
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    try:
        ffi.require("cuda", asked="cuda")
    except BadInput as error:
        raise SystemExit(str(error)) from error
    try:
        topology(1)
    except NotImplementedError as error:
        version = machine.version("jaxlib")
        raise SystemExit(
            "XLA's compiler for GPUs is not installed; pip install "
            f"jax-cuda13-pjrt=={version} jax-cuda13-plugin=={version}."
        ) from error
    model = model_config(options.model)
    chosen, _ = ops.select(options.ops, "gpu", model.HS)
    print(f"{machine.describe()}\n\n| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for devices, how in cases(options):
        A = how.pop("micro_batches", 1)
        total = A * options.B * options.T * devices
        cfg = TrainConfig(
            batch_size=options.B, sequence_length=options.T, total_batch_size=total, max_steps=1,
            schedule_steps=1, **(dict(dtype="bfloat16") | how),
        )  # fmt: skip
        step = compiled(chosen, model, cfg, devices)
        told = memory.step_memory(chosen, model, cfg, "gpu", devices).total
        by_xla = memory.planned_bytes(step)
        text = step.as_text()
        types = CUBLAS.findall(text)
        print(
            f"| {devices} | {cfg.zero_stage} | {A} | {cfg.dtype} | {cfg.recompute} "
            f"| {told / 2**30:.2f} | {by_xla / 2**30:.2f} | {told / by_xla - 1:+.1%} "
            f"| {types.count('f32')} of {len(types)} | {len(GELU.findall(text))} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
