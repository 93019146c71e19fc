"""Where a model comes from: a descriptor (d12), a file of llm.c, a folder of Hugging Face."""

from pathlib import Path

from llmc_jax.config import ModelConfig, model_config
from llmc_jax.interop import huggingface, llmc
from llmc_jax.models.gpt2 import Params


def open_model(name: str) -> tuple[ModelConfig, Params | None]:
    """Sizes of the model `name`, and its parameters where it is a file: NumPy arrays.

    name: a descriptor of config.MODELS, PATH.bin (llm.c's -e, fp32 or bf16) or hf:PATH, hf:NAME.
    Raises BadInput where there is no such model.
    """
    if name.startswith("hf:"):
        return huggingface.read_model(huggingface.find(name.removeprefix("hf:")))
    if name.endswith(".bin") or Path(name).is_file():
        return llmc.read_model(name)
    return model_config(name), None
