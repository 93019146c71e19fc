"""Documents to tokens: tiktoken's, without a Python object for each; long texts in parts."""

import re

import numpy as np

from llmc_jax.data.tokenizer import EOT, tokenizer

# A text may be cut in front of such a space, and the tokens of the parts are those of the whole: no
# piece of GPT-2's pattern has a space behind something else, and it looks ahead from spaces only.
BREAK = re.compile(r"(?<=[!-~])[ \n]")


def encode(documents: list[str]) -> np.ndarray:
    """The tokens of all documents, each after an end-of-text token; uint16."""
    start = np.array([EOT], np.uint16)
    encoded = (part for text in documents for part in (start, _encode(text)))
    return np.concatenate(list(encoded), dtype=np.uint16, casting="unsafe")


def parts(text: str, size: int) -> list[str]:
    """The text in parts of about `size` characters whose tokens together are those of the whole."""
    cuts = [0]
    while found := BREAK.search(text, cuts[-1] + size):
        cuts.append(found.start())
    return [text[a:b] for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def _encode(text: str) -> np.ndarray:
    """The text's tokens; uint32, but all of them fit into uint16."""
    try:
        return tokenizer().encode_to_numpy(text, disallowed_special=())
    except UnicodeEncodeError:  # half of a surrogate pair, for which encode_ordinary has a rule
        return np.array(tokenizer().encode_ordinary(text), np.uint32)
