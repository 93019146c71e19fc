"""What --model names: a descriptor is one whatever lies there."""

import pytest

from llmc_jax.config import MODELS, BadInput
from llmc_jax.interop.source import open_model
from llmc_jax.trained import open_trained


@pytest.mark.parametrize("name", ["d6", "gpt2:d6", "gpt3:c384"])
def test_a_descriptor_is_never_a_path(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()  # a run's --output_dir, say
    assert open_model(name) == (MODELS[name.removeprefix("gpt2:")], None)
    with pytest.raises(BadInput, match=f"--model=./{name} is a directory"):
        open_model(f"./{name}")
    (tmp_path / name).rmdir()
    (tmp_path / name).touch()
    with pytest.raises(BadInput, match=f"--model={name} has no weights"):
        open_trained(None, run="", model=name)


def test_an_output_directory_of_llm_c_is_told_from_one_of_ours(tmp_path):
    """With what makes a run of it."""
    (tmp_path / "DONE_00000012").touch()
    with pytest.raises(BadInput, match=f"llmc_jax.export --source={tmp_path} --format=checkpoint"):
        open_model(str(tmp_path))
