"""Tiny Shakespeare, tokenised and split exactly as llm.c does (dev/data/tinyshakespeare.py)."""

import hashlib
import urllib.request

import numpy as np

from llmc_jax.config import BadInput
from llmc_jax.data.tokenizer import tokenizer

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
VAL_TOKENS = 32768  # the first ones
TIMEOUT_S = 60
END_OF_TEXT = "<|endoftext|>"


def tokens(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation tokens, from the file `path` or, where empty, from URL.

    Raises BadInput for a download that fails and for any other text than llm.c's.
    """
    data = _read(path) if path else _download()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise BadInput(
            f"{path or URL} is not the Tiny Shakespeare that llm.c uses (its SHA-256 differs); "
            f"use --source=text for other texts."
        )
    # A speech ends with an empty line: each becomes a document of its own.
    text = END_OF_TEXT + data.decode().replace("\n\n", "\n\n" + END_OF_TEXT)
    encoded = np.array(tokenizer().encode(text, allowed_special={END_OF_TEXT}), np.uint16)
    return encoded[VAL_TOKENS:], encoded[:VAL_TOKENS]


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise BadInput(f"--input={path} cannot be read: {error.strerror}.") from error


def _download() -> bytes:
    try:
        with urllib.request.urlopen(URL, timeout=TIMEOUT_S) as response:
            return response.read()
    except OSError as error:
        raise BadInput(
            f"{URL} cannot be downloaded; fetch it another way and name the file with --input."
        ) from error
