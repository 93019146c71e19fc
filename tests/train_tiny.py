"""llmc_jax.train with --model=tiny, as a program.

Where AT=STEP,SIGNAL is in the environment, the process gets the signal before that step.
"""

import os

from llmc_jax import config, program, train
from tests import tiny


def signal_itself(at: int, number: int) -> None:
    real, calls = train.train_batch, []

    def batch(*args):
        calls.append(None)
        if len(calls) == at + 1:
            os.kill(os.getpid(), number)
        return real(*args)

    train.train_batch = batch


if __name__ == "__main__":
    config.MODELS["tiny"] = tiny.MODEL
    if "AT" in os.environ:
        signal_itself(*map(int, os.environ["AT"].split(",")))
    program.run(train.main, config.TrainConfig)
