"""The standard library of the Python that runs this, and its documentation.

Real text that every machine has: a quick start needs no download. Tests, and tables of
character encodings, are left out: they are data rather than text.
"""

import hashlib
import json
import platform
import sysconfig
import tokenize
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from llmc_jax.data.sources import Source, at_hand, numbered

SKIPPED_FOLDERS = {
    "__pycache__", "dist-packages", "encodings", "idle_test", "pydoc_data", "site-packages",
    "test", "tests",
}  # fmt: skip
VAL_SHARE = 20  # one document in 20 is for validation


def source(*, shard_tokens: int) -> Source:
    """The library's modules and the manual's pages."""
    splits = dict(zip(("train", "val"), documents(), strict=True))
    digest = hashlib.sha256(json.dumps(splits).encode())
    name = f"standard library of Python {platform.python_version()}"
    streams = [
        at_hand(texts, partial(numbered, f"pystdlib_{split}", shard_tokens))
        for split, texts in splits.items()
    ]
    return Source("pystdlib", [dict(file=name, sha256=digest.hexdigest())], streams)


def documents() -> tuple[list[str], list[str]]:
    """Texts for training and for validation, split by file name, in a fixed order."""
    train, val = [], []
    for name, text in (*_modules(Path(sysconfig.get_path("stdlib"))), *_manual()):
        digest = hashlib.sha256(name.encode()).digest()
        (val if digest[0] % VAL_SHARE == 0 else train).append(text)
    return train, val


def _modules(root: Path) -> Iterator[tuple[str, str]]:
    """Name and source text of each module below `root`."""
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if SKIPPED_FOLDERS.isdisjoint(name.parts) and path.is_file():  # no folder, no broken link
            try:
                with tokenize.open(path) as file:  # honours the file's coding line
                    yield name.as_posix(), file.read()
            except (SyntaxError, UnicodeDecodeError):  # test data for the compiler
                continue


def _manual() -> Iterator[tuple[str, str]]:
    """Name and text of each page of the language reference that pydoc carries."""
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        yield f"topics/{name}", text
