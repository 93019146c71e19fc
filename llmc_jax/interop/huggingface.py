"""Hugging Face's GPT2LMHeadModel folders: config.json and safetensors, without PyTorch.

Their linear layers are Conv1D, whose weights are (in, out) where ours are (out, in); the head is
tied to wte, which has no padded rows. Reference: transformers, modeling_gpt2.py.
"""

import json
import math
import operator
import re
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from llmc_jax.config import BadInput, ModelConfig, refuse_impossible
from llmc_jax.files import new_file, refuse_unwritable
from llmc_jax.models import gpt2
from llmc_jax.models.gpt2 import Block, Params

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # where the weights are in several files
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")  # transformers' names for those

# A tensor of ours -> its name in a layer of theirs; those of matrices are transposed.
NAMES = Block(
    ln1w="ln_1.weight",
    ln1b="ln_1.bias",
    qkvw="attn.c_attn.weight",
    qkvb="attn.c_attn.bias",
    attprojw="attn.c_proj.weight",
    attprojb="attn.c_proj.bias",
    ln2w="ln_2.weight",
    ln2b="ln_2.bias",
    fcw="mlp.c_fc.weight",
    fcb="mlp.c_fc.bias",
    fcprojw="mlp.c_proj.weight",
    fcprojb="mlp.c_proj.bias",
)

SIZES = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")  # L, NH, C, maxT, V
DTYPES = ("F64", "F32", "F16", "BF16")  # what safetensors calls the types that NumPy reads

# What a GPT-2 of ours always is, where config.json may say otherwise; absent means the same.
FIXED = dict(
    model_type="gpt2",
    activation_function="gelu_new",
    layer_norm_epsilon=1e-5,
    scale_attn_weights=True,
    scale_attn_by_inverse_layer_idx=False,
    add_cross_attention=False,
    tie_word_embeddings=True,
)


def find(name: str, flag: str = "model") -> Path:
    """The folder of `name`: a local one, or a model of the hub, downloaded to its usual cache.

    Raises BadInput, which names `flag`, where it is neither or cannot be had.
    """
    if Path(name).is_dir():
        return Path(name)
    asked = f"--{flag}=hf:{name}"
    local = "give a local directory, as transformers' save_pretrained writes it"
    if name.startswith((".", "/")) or name.count("/") > 1:
        raise BadInput(f"{asked}: there is no such directory; {local}.")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise BadInput(
            f"{asked} is no local directory, and a download needs pip install huggingface_hub."
        ) from error
    try:
        patterns = ["config.json", WEIGHTS, INDEX, "model-*.safetensors"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # whatever the network, the hub or its cache raised
        raise BadInput(
            f"{asked} cannot be downloaded ({type(error).__name__}); {local}."
        ) from error


def read_model(folder: str | Path) -> tuple[ModelConfig, Params]:
    """The model in `folder`: NumPy arrays, bfloat16 where it is stored so, else float32; wte
    padded with rows of 0.

    Raises BadInput where it is of another architecture or a tensor is missing.
    """
    folder = Path(folder)
    cfg = _read_config(folder)
    tensors = _open_tensors(folder)
    prefix = "transformer." if "transformer.wte.weight" in tensors else ""

    def read(name: str, shape: tuple[int, ...], *, transposed: bool = False) -> np.ndarray:
        if prefix + name not in tensors:
            raise BadInput(f"{folder} has no tensor {prefix + name}; save the model again.")
        file = tensors[prefix + name]
        if (stored := file.get_slice(prefix + name).get_dtype()) not in DTYPES:
            raise BadInput(
                f"{folder}: {prefix + name} is stored as {stored}; save the model in float32, "
                f"float16 or bfloat16."
            )
        tensor = file.get_tensor(prefix + name)
        dtype = tensor.dtype if stored == "BF16" else np.float32
        tensor = np.asarray(tensor.T if transposed else tensor, dtype)
        if tensor.shape != shape:
            raise BadInput(
                f"{folder}: {prefix + name} is {tensor.shape}, and config.json says {shape}."
            )
        return tensor

    shapes = gpt2.shapes(cfg)
    rows = read("wte.weight", (cfg.V, cfg.C))  # before there is room for it: the sizes may be wrong
    wte = np.zeros(shapes.wte.shape, rows.dtype)
    wte[: cfg.V] = rows
    blocks = tuple(
        Block(
            *(
                read(f"h.{layer}.{name}", shape.shape, transposed=gpt2.is_matrix(shape))
                for name, shape in zip(NAMES, shapes.block[layer], strict=True)
            )
        )
        for layer in range(cfg.L)
    )
    return cfg, Params(
        wte,
        read("wpe.weight", shapes.wpe.shape),
        blocks,
        read("ln_f.weight", shapes.lnfw.shape),
        read("ln_f.bias", shapes.lnfb.shape),
    )


def write_model(
    folder: str | Path, cfg: ModelConfig, params: Params, *, overwrite: bool = False
) -> None:
    """Write a folder that GPT2LMHeadModel.from_pretrained reads, in float32.

    overwrite: also where it has a model in several files, which are removed: some programs would
    read them instead.
    """
    folder = Path(folder)
    refuse_to_replace(folder, overwrite=overwrite)
    tensors = {
        "wte.weight": params.wte[: cfg.V],
        "wpe.weight": params.wpe,
        "ln_f.weight": params.lnfw,
        "ln_f.bias": params.lnfb,
    }
    for layer, block in enumerate(params.block):
        for name, tensor in zip(NAMES, block, strict=True):
            tensors[f"h.{layer}.{name}"] = tensor.T if tensor.ndim == 2 else tensor
    tensors = {f"transformer.{name}": tensors[name] for name in sorted(tensors)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{folder} cannot be made: {error.strerror}.") from error
    with new_file(folder / "config.json", overwrite=overwrite) as config:
        config.write(json.dumps(_config(cfg), indent=2).encode())
        with new_file(folder / WEIGHTS, overwrite=overwrite) as weights:
            weights.write(_header({name: tensor.shape for name, tensor in tensors.items()}))
            for tensor in tensors.values():  # one after another: transposed ones are copies
                weights.write(np.ascontiguousarray(tensor, "<f4").data)
    _remove_shards(folder)


def _header(shapes: dict[str, tuple[int, ...]]) -> bytes:
    """What a safetensors file has in front of these float32 tensors."""
    header, begin = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        end = begin + 4 * math.prod(shape)
        header[name] = dict(dtype="F32", shape=shape, data_offsets=(begin, end))
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def refuse_to_replace(folder: Path, *, overwrite: bool) -> None:
    """Raises BadInput where `write_model` would, for what is in the folder already."""
    if (folder / INDEX).exists() and not overwrite:
        raise BadInput(
            f"{folder / INDEX} exists; add --overwrite to replace its model, or name another "
            f"directory."
        )
    if folder.is_dir():
        for name in ("config.json", WEIGHTS):
            refuse_unwritable(folder / name, overwrite=overwrite)


def _remove_shards(folder: Path) -> None:
    """Remove a model in several files: its index, and what that names and transformers writes."""
    if not (folder / INDEX).exists():
        return
    shards = [name for name in _indexed(folder) if SHARD.fullmatch(name)]
    try:
        for name in (INDEX, *shards):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise BadInput(
            f"{error.filename} of the model before cannot be removed: {error.strerror}; remove it "
            f"by hand."
        ) from error


def _config(cfg: ModelConfig) -> dict:
    """config.json."""
    return FIXED | dict(
        architectures=["GPT2LMHeadModel"],
        n_layer=cfg.L,
        n_head=cfg.NH,
        n_embd=cfg.C,
        n_positions=cfg.maxT,
        vocab_size=cfg.V,
        bos_token_id=cfg.V - 1,
        eos_token_id=cfg.V - 1,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        torch_dtype="float32",
    )


def _read_config(folder: Path) -> ModelConfig:
    """Sizes from config.json; BadInput where it is of a model that we do not have."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
        L, NH, C, maxT, V = (operator.index(config[name]) for name in SIZES)
    except OSError as error:
        raise BadInput(
            f"{path} cannot be read: {error.strerror}; name a folder as transformers' "
            f"save_pretrained writes it."
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(f"{path} is not the config of a GPT-2 ({error!r}).") from error
    for name, wanted in FIXED.items():
        if config.get(name, wanted) != wanted:
            raise BadInput(
                f"{path} says {name} = {config[name]!r}; only GPT-2 with {wanted!r} can be read."
            )
    if config.get("n_inner") not in (None, 4 * C):
        raise BadInput(f"{path} says n_inner = {config['n_inner']}; it must be 4 n_embd.")
    model = ModelConfig(L=L, NH=NH, C=C, maxT=maxT, V=V, Vp=-(-V // 128) * 128)
    refuse_impossible(model, path)
    return model


def _open_tensors(folder: Path) -> dict:
    """Name of each tensor -> the open file that holds it."""
    files = [folder / WEIGHTS]
    if not files[0].exists() and (folder / INDEX).exists():  # in transformers' order
        files = [folder / name for name in _indexed(folder)]
    tensors = {}
    for file in files:
        try:
            opened = safe_open(file, framework="numpy")
        except (OSError, SafetensorError) as error:
            raise BadInput(
                f"{file} cannot be read ({error}); save the model with safe_serialization=True."
            ) from error
        tensors |= dict.fromkeys(opened.keys(), opened)
    return tensors


def _indexed(folder: Path) -> list[str]:
    """The files that the folder's index names. Raises BadInput where it is none."""
    try:
        return sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(
            f"{folder / INDEX} is not the index of a model ({error!r}); save the model again."
        ) from error
