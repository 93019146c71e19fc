"""d12 against numbers made by llm.c: the first steps of a recipe.

A file of its own, because files are what is shared out among processes.
"""

import numpy as np
import pytest

from llmc_jax import train
from llmc_jax.config import TrainConfig
from llmc_jax.data.tokens import write_shard
from llmc_jax.training.logger import read_metrics
from llmc_jax.training.run_dir import RunDir
from tests import golden


@pytest.mark.parametrize(
    ("dtype", "count", "loss_rtol", "norm_rtol"),
    [("float32", 10, 5e-5, 2e-3), ("bfloat16", 3, 1e-3, None)],
)
def test_steps_of_a_recipe(tmp_path, dtype, count, loss_rtol, norm_rtol):
    """Accumulation, clipping, warm-up, cosine and decay together, through the whole program.

    Of the recipe's twenty steps the first, for time.
    """
    reference = golden.read("d12_tinyshakespeare_20steps")
    for split in ("train", "val"):
        write_shard(tmp_path / f"{split}.bin", golden.tokens(split))
    train.main(
        TrainConfig(
            model="d12",
            train_data=f"{tmp_path}/train.bin",
            val_data=f"{tmp_path}/val.bin",
            output_dir=f"{tmp_path}/run",
            batch_size=reference["B"],
            sequence_length=reference["T"],
            total_batch_size=reference["total_batch_size"],
            max_steps=count,
            schedule_steps=reference["steps"],
            shuffle=False,
            learning_rate=reference["learning_rate"],
            warmup_steps=reference["warmup_iters"],
            final_lr_fraction=reference["learning_rate_decay_frac"],
            weight_decay=reference["weight_decay"],
            dtype=dtype,
            val_every=10,
            val_batches=5,
            sample_every=0,
        )
    )
    metrics = read_metrics(RunDir(tmp_path / "run").metrics)
    steps = [m for m in metrics if "train_loss" in m]
    val = {str(m["step"]): m["val_loss"] for m in metrics if "val_loss" in m}
    losses = [m["train_loss"] for m in steps]
    np.testing.assert_allclose(losses, reference["train_loss"][:count], rtol=loss_rtol)
    wanted = {step: loss for step, loss in reference["val_loss"].items() if int(step) <= count}
    np.testing.assert_allclose(
        [val[step] for step in wanted], list(wanted.values()), rtol=loss_rtol
    )
    rates = [m["learning_rate"] for m in steps]
    np.testing.assert_allclose(rates, reference["lr"][:count], rtol=5e-3)
    if norm_rtol:
        norms = [m["grad_norm"] for m in steps]
        np.testing.assert_allclose(norms, reference["norm"][:count], rtol=norm_rtol)
