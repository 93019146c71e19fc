"""The picture of a run's loss curves."""

import os
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def plot_losses(metrics: list[dict], path: Path) -> None:
    """Training and validation loss over the steps of `metrics` (metrics.jsonl), as a PNG."""
    train = [(m["step"] + 1, m["train_loss"]) for m in metrics if "train_loss" in m]
    val = [(m["step"], m["val_loss"]) for m in metrics if "val_loss" in m]
    figure, axes = plt.subplots(figsize=(8, 5), dpi=120)
    if train:
        steps, losses = np.array(train).T
        axes.plot(steps, losses, color="tab:blue", alpha=0.3, lw=1)
        axes.plot(*_smooth(steps, losses), color="tab:blue", label="training, mean of neighbours")
    if val:
        label = f"validation, {val[-1][1]:.3f} at the end"
        axes.plot(*zip(*val, strict=True), color="tab:red", marker="o", ms=3, label=label)
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=path.absolute().parent.name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, format="png")
    plt.close(figure)
    os.replace(temporary, path)


def _smooth(steps: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over windows of a twentieth of the steps."""
    width = max(1, len(losses) // 20)
    mean = np.ones(width) / width
    return np.convolve(steps, mean, "valid"), np.convolve(losses, mean, "valid")
