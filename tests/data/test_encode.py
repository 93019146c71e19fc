"""encode: tiktoken's tokens, whatever the text, and whatever the parts it is cut into."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc_jax.data.encode import encode, parts
from llmc_jax.data.sources import pystdlib
from llmc_jax.data.tokenizer import EOT, tokenizer


def tiktokens(documents) -> list[int]:
    return [t for text in documents for t in (EOT, *tokenizer().encode_ordinary(text))]


# Spaces of all kinds, what Python alone takes for space, contractions, letters with marks.
SNIPPETS = [
    " ", "  ", "\n", "\n\n", "\t", "\r\n", "\x0b", "\x1c", "\x1f", "\x85", "\xa0", "\u2003",
    "\u3000", "\u200b", "'s", "'ll", "'", "don't", "a", "Word", "é", "e\u0301", "日本", "٣", "12",
    "_", "!?", "{", "<|endoftext|>", "\x00", "😀",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(SNIPPETS) | st.text(max_size=3)).map("".join)


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_the_tokens_are_tiktokens(documents):
    assert encode(documents).tolist() == tiktokens(documents)


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.integers(1, 10))
def test_parts_have_the_tokens_of_the_whole(text, size):
    pieces = list(parts(text, size))
    assert "".join(pieces) == text
    tokens = np.concatenate([encode([piece])[1:] for piece in pieces])
    assert tokens.tolist() == tokenizer().encode_ordinary(text)


@pytest.mark.parametrize("text", ["日本語\r\n" * 99, "слово " * 99, "\u3000" * 99 + "日本" * 99])
def test_texts_without_ascii_have_parts_too(text):
    pieces = list(parts(text, 80))
    assert len(pieces) > 1
    tokens = np.concatenate([encode([piece])[1:] for piece in pieces])
    assert tokens.tolist() == tokenizer().encode_ordinary(text)


@pytest.mark.parametrize("behind", ["word", "\x1c"])
def test_white_space_that_is_too_much_for_tiktoken(behind):
    """As a part's end it is none; a space is a token, the last goes to what is behind it."""
    text = "word" + " " * 1_100_000 + behind
    tokens = np.concatenate([encode([piece])[1:] for piece in parts(text, 1 << 18)])
    (space,), (word,), end = map(tokenizer().encode_ordinary, (" ", "word", f" {behind}"))
    assert tokens.tolist() == [word, *[space] * 1_099_999, *end]


@pytest.mark.parametrize("text", ["\ud83d  x", "\ud83d\ude00", "", "<|endoftext|>"])
def test_texts_with_rules_of_their_own(text):
    assert encode([text, "plain  text"]).tolist() == tiktokens([text, "plain  text"])


def test_real_text():
    documents = [text for split in pystdlib.documents() for text in split][::10]
    assert encode(documents).tolist() == tiktokens(documents)
    whole = "\n".join(documents)
    pieces = list(parts(whole, 10_000))
    assert len(pieces) > len(whole) / 12_000
    tokens = np.concatenate([encode([piece])[1:] for piece in pieces])
    assert tokens.tolist() == tokenizer().encode_ordinary(whole)
