"""What known devices can do at most, by their makers' datasheets, for comparison and planning.

A device that is not in the table is measured, never guessed. Dense rates: half of what a datasheet
says "with sparsity".
"""

from typing import NamedTuple

from llmc_jax.config import BadInput

GIB = 2**30


class Device(NamedTuple):
    """One chip."""

    name: str
    kinds: tuple[str, ...]  # what JAX calls it, jax.Device.device_kind
    platform: str  # what JAX calls its platform
    bfloat16: float  # FLOP/s of matrix products
    float32: float  # the same of float32 operands as JAX multiplies them by default
    float32_by: str  # how that is
    memory: float  # bytes
    source: str


def _nvidia(name, kinds, bfloat16, tf32, memory, source) -> Device:
    rates = (bfloat16 * 1e12, tf32 * 1e12, "TF32")
    return Device(name, kinds, "gpu", *rates, memory * 1e9, source)


def _tpu(name, kinds, bfloat16, memory, page) -> Device:
    rates = (bfloat16 * 1e12, bfloat16 * 1e12, "one bfloat16 pass")
    return Device(name, kinds, "tpu", *rates, memory * GIB, f"cloud.google.com/tpu/docs/{page}")


# fmt: off
DEVICES = (
    _nvidia("A100-40GB", ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"), 312, 156, 40,
            "NVIDIA A100 datasheet"),
    _nvidia("A100", ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"), 312, 156, 80,
            "NVIDIA A100 80GB datasheet (SXM)"),
    _nvidia("H100-PCIe", ("NVIDIA H100 PCIe",), 756, 378, 80, "NVIDIA H100 datasheet (PCIe)"),
    _nvidia("H100", ("NVIDIA H100 80GB HBM3",), 989, 495, 80, "NVIDIA H100 datasheet (SXM)"),
    _nvidia("H200", ("NVIDIA H200",), 989, 495, 141, "NVIDIA H200 datasheet (SXM)"),
    _nvidia("B200", ("NVIDIA B200",), 2250, 1100, 180,
            "NVIDIA Blackwell architecture brief and DGX B200 datasheet (HGX, 1000 W)"),
    _tpu("TPU v4", ("TPU v4",), 275, 32, "v4"),
    _tpu("TPU v5e", ("TPU v5 lite", "TPU v5e"), 197, 16, "v5e"),
    _tpu("TPU v5p", ("TPU v5p", "TPU v5"), 459, 95, "v5p"),
    _tpu("TPU v6e", ("TPU v6 lite", "TPU v6e"), 918, 32, "v6e"),
)
# fmt: on


def known(kind: str) -> Device | None:
    """The device that JAX calls `kind`, or None."""
    return next((device for device in DEVICES if kind in device.kinds), None)


def named(name: str) -> Device:
    """The device that --device=`name` means. Raises BadInput where it is not in the table."""
    for device in DEVICES:
        if name.lower().replace("_", " ") in (device.name.lower(), *map(str.lower, device.kinds)):
            return device
    raise BadInput(
        f"--device={name} is not in the table of devices; use one of "
        f"{', '.join(device.name for device in DEVICES)}, or give --memory alone."
    )
