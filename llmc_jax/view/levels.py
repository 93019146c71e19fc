"""What OpenAI's models reach, to draw beside a run: the levels of llm.c's dev/vislog.ipynb."""

from typing import NamedTuple

from llmc_jax.config import BadInput


class Level(NamedTuple):
    """A horizontal line."""

    label: str
    curve: str  # in whose panel it is: val_loss or hellaswag
    value: float


# Losses on FineWeb's validation tokens (which of them the notebook does not say; build-nanogpt has
# 3.2924 for 124M), HellaSwag as acc_norm; GPT-3 at the model size nearest.
GPT2_LOSS = {"124M": 3.424958, "350M": 3.083089, "774M": 3.000580, "1558M": 2.831273}
GPT2_HELLASWAG = {"124M": 0.294463, "350M": 0.375224, "774M": 0.431986, "1558M": 0.488946}
GPT3_HELLASWAG = {"124M": 0.337, "350M": 0.436, "774M": 0.510, "1558M": 0.547}


def levels(sizes: str) -> list[Level]:
    """The levels of the models of `sizes`, the words of --levels. Raises BadInput for others."""
    chosen = []
    for size in filter(None, sizes.split(",")):
        if size not in GPT2_LOSS:
            raise BadInput(
                f"--levels={sizes}: there is no '{size}'; write some of {', '.join(GPT2_LOSS)}."
            )
        chosen += [
            Level(f"GPT-2 {size} on FineWeb", "val_loss", GPT2_LOSS[size]),
            Level(f"GPT-2 {size}", "hellaswag", GPT2_HELLASWAG[size]),
            Level(f"GPT-3 {size}", "hellaswag", GPT3_HELLASWAG[size]),
        ]
    return chosen
