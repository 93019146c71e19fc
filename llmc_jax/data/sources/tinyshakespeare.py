"""Tiny Shakespeare, tokenised and split exactly as llm.c does (dev/data/tinyshakespeare.py)."""

import hashlib
import itertools
from functools import partial
from pathlib import Path

from llmc_jax.config import BadInput
from llmc_jax.data.download import download
from llmc_jax.data.sources import Source, at_hand, numbered

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
VAL_TOKENS = 32768  # the first ones


def source(path: str, downloads: Path, *, shard_tokens: int) -> Source:
    """The text of the file `path` or, where empty, from URL.

    Raises BadInput for a download that fails and for any other text than llm.c's.
    """
    if not path:
        path = download(URL, downloads / "tinyshakespeare.txt", sha256=SHA256)
    data = _read(path)
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise BadInput(
            f"{path} is not the Tiny Shakespeare that llm.c uses (its SHA-256 differs); "
            f"use --source=text for other texts."
        )
    # A speech ends with an empty line: each is a document of its own.
    *speeches, end = data.decode().split("\n\n")
    texts = [*(speech + "\n\n" for speech in speeches), end]
    stream = at_hand(texts, partial(_shards, shard_tokens))
    name = "tinyshakespeare"
    return Source(name, [dict(file=name, bytes=len(data), sha256=SHA256)], [stream])


def _shards(shard_tokens: int):
    """The first VAL_TOKENS in shards for validation, then the rest in those for training."""
    sizes = [min(shard_tokens, VAL_TOKENS - done) for done in range(0, VAL_TOKENS, shard_tokens)]
    names = (name for name, _ in numbered("tinyshakespeare_val", shard_tokens))
    return itertools.chain(
        zip(names, sizes, strict=False), numbered("tinyshakespeare_train", shard_tokens)
    )


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadInput(f"--input={path} cannot be read: {error.strerror}.") from error
