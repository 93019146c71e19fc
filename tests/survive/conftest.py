"""A small run with checkpoints, for tests of what runs survive."""

import dataclasses
import shutil

import pytest

from llmc_jax import config, train
from tests import tiny


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch):
    """--model=tiny."""
    monkeypatch.setitem(config.MODELS, "tiny", tiny.MODEL)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_data(tmp_path_factory.mktemp("data"), 400)


@pytest.fixture
def cfg(data, tmp_path):
    return tiny.config(**data, output_dir=f"{tmp_path}/run", val_batches=1, checkpoint_every=2)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The options of a run of 6 steps with checkpoints at 2, 4 and 6; not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    cfg = tiny.config(**data, output_dir=str(folder), val_batches=1, checkpoint_every=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(config.MODELS, "tiny", tiny.MODEL)
        train.main(cfg)
    return cfg


@pytest.fixture
def copied(trained, tmp_path):
    """The same in a directory of its own, to be changed, with --resume."""
    shutil.copytree(trained.output_dir, tmp_path / "copy")
    return dataclasses.replace(trained, output_dir=f"{tmp_path}/copy", resume=True)
