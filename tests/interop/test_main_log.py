"""main.log as llm.c's notebook reads it (dev/vislog.ipynb), also after a resume."""

import shutil

from llmc_jax import config, train
from tests import tiny


def streams(path) -> dict[str, dict[int, float]]:
    """Stream -> step -> value: of each line the step and the first value after it."""
    found: dict[str, dict[int, float]] = {}
    for line in path.read_text().splitlines():
        step, first, *_ = (part.split(":") for part in line.split())
        assert step[0] == "s" and int(step[1]) not in found.get(first[0], {}), line
        found.setdefault(first[0], {})[int(step[1])] = float(first[1])
    return found


def test_main_log_holds_each_step_once_in_llmcs_format(tmp_path, monkeypatch):
    monkeypatch.setitem(config.MODELS, "tiny", tiny.MODEL)
    options = dict(**tiny.write_data(tmp_path), output_dir=f"{tmp_path}/run", checkpoint_every=3)
    train.main(tiny.config(**options))
    whole = streams(tmp_path / "run" / "main.log")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "00000006")  # killed before the last save
    train.main(tiny.config(**options, resume=True))
    assert streams(tmp_path / "run" / "main.log") == whole
    assert list(whole["trl"]) == list(range(6)) and list(whole["tel"]) == [0, 3, 6]
    line = (tmp_path / "run" / "main.log").read_text().splitlines()[1]
    assert [part.split(":")[0] for part in line.split()] == ["s", "trl", "lr", "norm"]
