"""llmc_jax.train with --model=tiny, as a program.

Where AT=STEP,SIGNAL is in the environment, the process gets the signal before that step; where
VALIDATING=N is, SIGTERM in the Nth batch that it validates.
"""

import os

import pytest

from llmc_jax import config, program, train
from tests import tiny
from tests.survive.runs import interrupt_at, interrupt_validation

if __name__ == "__main__":
    config.MODELS["tiny"] = tiny.MODEL
    if "AT" in os.environ:
        interrupt_at(pytest.MonkeyPatch(), *map(int, os.environ["AT"].split(",")))
    if "VALIDATING" in os.environ:
        interrupt_validation(pytest.MonkeyPatch(), int(os.environ["VALIDATING"]))
    program.run(train.main, config.TrainConfig)
