"""Documents to tokens: tiktoken's, without a Python object for each; long texts in parts."""

import re
from collections.abc import Iterator

import numpy as np

from llmc_jax.data.tokenizer import EOT, tokenizer

# A text may be cut in front of the first or the last of some white space, and the tokens of the
# parts are those of the whole: GPT-2's pattern has no piece with white space behind something else,
# and leaves the last before something else to that. Also a million of it together can be tokenised
# then: not inside a text, where tiktoken steps back for that last one, but at the end of a part.
# (\x1c to \x1f are white space for Python alone.)
BREAK = re.compile(r"(?<=[\S\x1c-\x1f])[^\S\x1c-\x1f]|[^\S\x1c-\x1f](?=[\S\x1c-\x1f])")


def encode(documents: list[str]) -> np.ndarray:
    """The tokens of all documents, each after an end-of-text token; uint16."""
    start = np.array([EOT], np.uint16)
    encoded = (part for text in documents for part in (start, _encode(text)))
    return np.concatenate(list(encoded), dtype=np.uint16, casting="unsafe")


def parts(text: str, size: int) -> Iterator[str]:
    """The text in parts of about `size` characters whose tokens together are those of the whole."""
    begin = 0
    while found := BREAK.search(text, begin + size):
        yield text[begin : found.start()]
        begin = found.start()
    yield text[begin:]


def _encode(text: str) -> np.ndarray:
    """The text's tokens; uint32, but all of them fit into uint16."""
    try:
        return tokenizer().encode_to_numpy(text, disallowed_special=())
    except UnicodeEncodeError:  # half of a surrogate pair, for which encode_ordinary has a rule
        return np.array(tokenizer().encode_ordinary(text), np.uint32)
