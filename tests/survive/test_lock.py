"""Two runs in one directory."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from llmc_jax import checkpoint as checkpoint_program
from llmc_jax import lock, train
from llmc_jax.checkpoint import CheckpointConfig
from llmc_jax.config import BadInput


def test_two_runs_in_one_directory_are_refused_by_name(copied):
    holder = subprocess.Popen(
        [
            sys.executable, "-c",
            "import pathlib, sys, time\nfrom llmc_jax.lock import locked\n"
            "with locked(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n"
            "    time.sleep(60)",
            copied.output_dir,
        ],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout.readline() == "held\n"
    message = rf"is in use by process {holder.pid} on \S+ \(since .*\); wait for it to end, or name"
    for resume in (True, False):
        with pytest.raises(BadInput, match="--output_dir=.*" + message):
            train.main(dataclasses.replace(copied, resume=resume))
    with pytest.raises(BadInput, match="--run=.*" + message):
        checkpoint_program.main("rm", CheckpointConfig(run=copied.output_dir, keep=1))
    holder.kill()
    holder.communicate()
    with pytest.raises(BadInput, match="already holds a run; add --resume"):
        train.main(dataclasses.replace(copied, resume=False))
    with lock.locked(Path(copied.output_dir)) as remark:  # it died with it
        assert remark.startswith(f"process {holder.pid} on ")
        assert "and ended without giving it back" in remark
    with lock.locked(Path(copied.output_dir)) as remark:
        assert remark == ""
