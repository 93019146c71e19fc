"""The golden numbers made by llm.c itself, and the batches they belong to."""

import functools
import json
from pathlib import Path

import numpy as np

TESTDATA = Path(__file__).parent / "testdata"


@functools.cache
def read(name: str) -> dict:
    """tests/testdata/<name>.json."""
    return json.loads((TESTDATA / f"{name}.json").read_text())


def tokens(split: str) -> np.ndarray:
    """The start of the "train" or "val" split of Tiny Shakespeare, as far as the runs read."""
    return np.array(read("tinyshakespeare_tokens")[split], np.uint16)


def by_name(params) -> dict[str, np.ndarray]:
    """llm.c's name -> tensor, of a gpt2.Params."""
    outer = {f: getattr(params, f) for f in params._fields if f != "block"}
    return {name: np.asarray(x) for name, x in (outer | params.block._asdict()).items()}
