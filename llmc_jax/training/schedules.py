"""Learning-rate schedules, evaluated inside the compiled step (llm.c schedulers.h).

One difference from llm.c: `constant` warms up too when --warmup_steps asks for it, where llm.c
ignores the flag without a word.
"""

import jax.numpy as jnp

from llmc_jax.config import TrainConfig

WSD_DECAY = 0.2  # share of the steps in which wsd (warm-up, stable, decay) decays


def learning_rate(step, cfg: TrainConfig):
    """Learning rate of `step` (0-based, may be traced), a float32 scalar.

    A linear warm-up to cfg.learning_rate, then the chosen curve down to cfg.final_lr_fraction of it
    at cfg.schedule_steps (cfg.max_steps, which must be known then, where that is -1).
    """
    step = jnp.asarray(step, jnp.float32)
    start = cfg.warmup_steps
    end = cfg.max_steps if cfg.schedule_steps == -1 else cfg.schedule_steps
    if cfg.lr_schedule == "wsd":
        start = max(start, int((1 - WSD_DECAY) * end))
    progress = jnp.clip((step - start) / max(end - start, 1), 0, 1)
    remaining = {
        "cosine": 0.5 * (1 + jnp.cos(jnp.pi * progress)),
        "linear": 1 - progress,
        "constant": jnp.ones_like(progress),
        "wsd": 1 - jnp.sqrt(progress),
    }[cfg.lr_schedule]
    decayed = cfg.final_lr_fraction + (1 - cfg.final_lr_fraction) * remaining
    warm = jnp.minimum((step + 1) / max(cfg.warmup_steps, 1), 1)
    return cfg.learning_rate * jnp.where(step < cfg.warmup_steps, warm, decayed)
