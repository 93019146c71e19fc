"""What is drawn where: the panels that picture and page have in common."""

from typing import NamedTuple

from llmc_jax.view.curves import Run


class Panel(NamedTuple):
    """Curves that share a vertical axis."""

    title: str
    curves: tuple[str, ...]


LOSS = Panel("loss (nats per token)", ("train_loss", "val_loss"))
PANELS = (
    LOSS,
    Panel("learning rate", ("learning_rate",)),
    Panel("gradient norm", ("grad_norm",)),
    Panel("tokens/s", ("tokens_per_s",)),
    Panel("HellaSwag (acc_norm)", ("hellaswag",)),
)
# Drawn faintly, with their smoothed curve on top; what few points have is drawn with its points.
NOISY = {"train_loss", "grad_norm", "tokens_per_s"}
SPARSE = {"val_loss", "hellaswag"}


def panels_of(runs: list[Run]) -> list[Panel]:
    """The panels that one of `runs` has a curve for."""
    return [p for p in PANELS if any(name in run.curves for run in runs for name in p.curves)]
