"""A model and data small enough for a test to train on."""

import numpy as np

from llmc_jax.config import ModelConfig, TrainConfig
from llmc_jax.data.tokens import write_shard

# odd on purpose: C is no multiple of a vector, V is padded
MODEL = ModelConfig(L=2, NH=3, C=48, maxT=32, V=90, Vp=96)


def tokens(count: int, seed: int = 0, V: int = MODEL.V) -> np.ndarray:
    """Random tokens with something to learn: each is often followed by its successor."""
    rng = np.random.default_rng(seed)
    steps = np.where(rng.random(count) < 0.8, 1, rng.integers(0, V, count))
    return (np.cumsum(steps) % V).astype(np.uint16)


def write_data(folder, count: int = 4000) -> dict[str, str]:
    """Shards for training and validation in `folder`; the flags that name them."""
    write_shard(folder / "train_0.bin", tokens(count, 0))
    write_shard(folder / "train_1.bin", tokens(count // 2, 1))
    write_shard(folder / "val.bin", tokens(count // 4, 2))
    return dict(train_data=f"{folder}/train_*.bin", val_data=f"{folder}/val.bin")


def config(**options) -> TrainConfig:
    """A run of the tiny model (tests put it into config.MODELS as "tiny")."""
    defaults = dict(
        model="tiny", batch_size=2, sequence_length=16, max_steps=6, val_every=3, val_batches=4,
        sample_every=0, learning_rate=1e-2, warmup_steps=2, final_lr_fraction=0.1,
        weight_decay=0.1,
    )  # fmt: skip
    return TrainConfig(**(defaults | options))


class Letters:
    """A tokenizer for the tiny vocabulary: one character a token."""

    n_vocab = MODEL.V

    @staticmethod
    def encode_ordinary(text):
        return [ord(letter) - 33 for letter in text]

    @staticmethod
    def decode_single_token_bytes(token):
        return chr(33 + token).encode()
