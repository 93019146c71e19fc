"""Where a model comes from: a descriptor (d12), a file of llm.c, a folder of Hugging Face."""

from pathlib import Path

from llmc_jax.config import MODELS, BadInput, ModelConfig, is_descriptor, model_config
from llmc_jax.interop import huggingface, llmc, llmc_state
from llmc_jax.models.gpt2 import Params


def names_no_file(name: str) -> bool:
    """Whether `name` is the name of a file or a folder, and there is none on this machine."""
    path = Path(name.removeprefix("hf:"))
    is_one = name.startswith("hf:") or "/" in name or name.endswith(".bin")
    return is_one and not path.exists()


def open_model(name: str, flag: str = "model") -> tuple[ModelConfig, Params | None]:
    """Sizes of the model `name`, and its parameters where it is a file: NumPy arrays.

    name: a descriptor of config.MODELS, PATH.bin (llm.c's -e, fp32 or bf16) or hf:PATH, hf:NAME.
    Raises BadInput, which names `flag`, where there is no such model.
    """
    if is_descriptor(name):
        return model_config(name, flag), None
    if name.startswith("hf:"):
        return huggingface.read_model(huggingface.find(name.removeprefix("hf:"), flag))
    if names_no_file(name) or (flag == "source" and not Path(name).exists()):
        raise BadInput(
            f"--{flag}={name}: there is no such file or directory; correct the name, or take one "
            f"of the models {', '.join(MODELS)}."
        )
    if name.endswith(".bin") or Path(name).is_file():
        return llmc.read_model(name)
    if Path(name).is_dir():
        if llmc_state.is_llmc_run(Path(name)):
            raise BadInput(
                f"--{flag}={name} is an output directory of llm.c; take a model file in it, or "
                f"make a run of it that --resume continues: python -m llmc_jax.export "
                f"--source={name} --format=checkpoint --output=RUN."
            )
        raise BadInput(
            f"--{flag}={name} is a directory; a folder of Hugging Face is written "
            f"--{flag}=hf:{name}, and from a run one starts with --init_from={name}."
        )
    return model_config(name, flag), None
