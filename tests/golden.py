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
    """llm.c's name -> tensor, of a gpt2.Params; those of the blocks with a leading L."""
    outer = {f: np.asarray(getattr(params, f)) for f in params._fields if f != "block"}
    blocks = {f: np.stack([getattr(b, f) for b in params.block]) for f in params.block[0]._fields}
    return outer | blocks
