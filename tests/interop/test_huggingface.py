"""Folders of Hugging Face's GPT-2: theirs read here, ours read there, and what is refused."""

import dataclasses
import json
import shutil
import tracemalloc

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file

from llmc_jax import ops
from llmc_jax.config import BadInput, ModelConfig
from llmc_jax.interop import huggingface
from llmc_jax.models import gpt2

MODEL = ModelConfig(L=2, NH=3, C=48, maxT=40, V=90, Vp=128)


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), gpt2.shapes(MODEL))
    params.wte[MODEL.V :] = 0
    return params


def test_a_model_is_read_as_it_was_written(tmp_path, params):
    huggingface.write_model(tmp_path / "a", MODEL, params)
    cfg, read = huggingface.read_model(tmp_path / "a")
    assert cfg == MODEL
    for got, wanted in zip(*map(jax.tree.leaves, (read, params)), strict=True):
        assert np.array_equal(got, wanted)
    huggingface.write_model(tmp_path / "b", cfg, read)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with pytest.raises(BadInput, match="add --overwrite"):
        huggingface.write_model(tmp_path / "a", MODEL, params)


def test_matrices_are_stored_transposed(tmp_path, params):
    """Conv1D of transformers has (in, out), llm.c (out, in); also the square one, which would fit
    either way."""
    huggingface.write_model(tmp_path, MODEL, params)
    stored = load_file(tmp_path / "model.safetensors")
    theirs = dict(qkvw="attn.c_attn", attprojw="attn.c_proj", fcw="mlp.c_fc", fcprojw="mlp.c_proj")
    for name, their in theirs.items():
        ours = getattr(params.block[1], name)
        assert np.array_equal(stored[f"transformer.h.1.{their}.weight"], ours.T)


def test_the_file_is_safetensors_own_and_is_not_made_in_memory(tmp_path):
    """Byte for byte; beside the model there is one transposed matrix at a time."""
    model = dataclasses.replace(MODEL, L=8, NH=4, C=64)
    params = jax.tree.map(lambda s: np.ones(s.shape, np.float32), gpt2.shapes(model))
    tracemalloc.start()
    huggingface.write_model(tmp_path, model, params)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    written = (tmp_path / "model.safetensors").read_bytes()
    assert peak < len(written) / 8
    assert written == save(load_file(tmp_path / "model.safetensors"), metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_the_file_that_a_full_disk_has_no_room_for_is_named(tmp_path, params, name):
    (tmp_path / f"{name}.tmp").symlink_to("/dev/full")
    with pytest.raises(BadInput, match=f"{name} cannot be written: No space left on device"):
        huggingface.write_model(tmp_path, MODEL, params)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("shards", ["5GB", "40KB"])
def test_a_model_of_transformers_gives_the_same_logits_here(tmp_path, shards):
    """And back again: their state is the same bit for bit. In one file and in several."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = dict(n_layer=MODEL.L, n_head=MODEL.NH, n_embd=MODEL.C)
    config = transformers.GPT2Config(
        **sizes, n_positions=MODEL.maxT, vocab_size=MODEL.V, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=shards)
    cfg, params = huggingface.read_model(tmp_path / "theirs")
    assert cfg == MODEL
    tokens = np.random.default_rng(0).integers(0, MODEL.V, (2, 17)).astype(np.int32)
    chosen, _ = ops.select("jnp", "cpu")
    ours = gpt2.logits(chosen, params, tokens, cfg=cfg)
    with torch.no_grad():
        wanted = theirs(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(ours, wanted, atol=1e-4)

    huggingface.write_model(tmp_path / "ours", cfg, params)
    back = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours")
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model_type="llama"), "model_type = 'llama'; only GPT-2 with 'gpt2'"),
        (dict(activation_function="relu"), "activation_function = 'relu'"),
        (dict(n_inner=100), "n_inner = 100"),
        (dict(n_embd=51), r"wte\.weight is \(90, 48\), and config\.json says \(90, 51\)"),
        (dict(n_layer=3), r"has no tensor transformer\.h\.2\.ln_1\.weight"),
        (dict(vocab_size=None), "is not the config of a GPT-2"),
        (dict(n_head=2.5), "is not the config of a GPT-2"),
        (dict(n_head=5), r"config\.json has impossible sizes: .*NH=5, C=48"),
        (dict(n_head=0), "has impossible sizes: .*NH=0"),
        (dict(n_layer=-1), "has impossible sizes: .*L=-1"),
        (dict(n_embd=3 * 10**12), r"and config\.json says \(90, 3000000000000\)"),
    ],
)
def test_another_architecture_is_refused(tmp_path, params, changes, message):
    huggingface.write_model(tmp_path, MODEL, params)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(BadInput, match=message):
        huggingface.read_model(tmp_path)


@pytest.fixture
def sharded(tmp_path, params):
    """A folder of a model in two files."""
    folder = tmp_path / "sharded"
    huggingface.write_model(folder, MODEL, params)
    tensors = list(load_file(folder / "model.safetensors").items())
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name, part in zip(names, (tensors[:9], tensors[9:]), strict=True):
        save_file(dict(part), folder / name)
    index = {name: names[n >= 9] for n, (name, _) in enumerate(tensors)}
    (folder / huggingface.INDEX).write_text(json.dumps(dict(weight_map=index)))
    return folder


def test_one_file_comes_before_several(sharded, params):
    """As in transformers, which looks for an index last."""
    assert np.array_equal(huggingface.read_model(sharded)[1].wpe, params.wpe)
    other = params._replace(wpe=params.wpe + 1)
    huggingface.write_model(sharded.parent / "other", MODEL, other)
    shutil.copy(sharded.parent / "other" / "model.safetensors", sharded)
    assert np.array_equal(huggingface.read_model(sharded)[1].wpe, other.wpe)


def test_a_model_in_several_files_is_replaced_whole(sharded, params):
    """But what the index names and is no part of a model stays."""
    index = json.loads((sharded / huggingface.INDEX).read_text())
    index["weight_map"]["other"] = "notes.txt"
    (sharded / huggingface.INDEX).write_text(json.dumps(index))
    (sharded / "notes.txt").touch()
    with pytest.raises(BadInput, match=r"index\.json exists; add --overwrite"):
        huggingface.write_model(sharded, MODEL, params)
    huggingface.write_model(sharded, MODEL, params, overwrite=True)
    left = sorted(path.name for path in sharded.iterdir())
    assert left == ["config.json", "model.safetensors", "notes.txt"]


@pytest.mark.parametrize("index", ["[]", "[" * 100_000], ids=["list", "deep"])
def test_a_broken_index_is_named(sharded, index):
    (sharded / huggingface.INDEX).write_text(index)
    with pytest.raises(BadInput, match=r"index\.json is not the index of a model"):
        huggingface.read_model(sharded)


@pytest.mark.parametrize("name", ["F8_E4M3", "I32"])
def test_a_type_that_is_none_of_ours_is_named(tmp_path, params, name):
    huggingface.write_model(tmp_path, MODEL, params)
    path = tmp_path / "model.safetensors"
    tensors = {name: np.zeros(x.shape, "<i4") for name, x in load_file(path).items()}
    data = save(tensors)
    if name != "I32":  # NumPy has no such type: the header says that there are four times as many
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        for tensor in header.values():
            tensor["dtype"], tensor["shape"] = name, [*tensor["shape"], 4]
        header = json.dumps(header).encode()
        data = len(header).to_bytes(8, "little") + header + data[8 + size :]
    path.write_bytes(data)
    with pytest.raises(BadInput, match=rf"\.wte\.weight is stored as {name}; save the model in"):
        huggingface.read_model(tmp_path)


def test_a_broken_folder_is_named(tmp_path, params):
    with pytest.raises(BadInput, match=r"config\.json cannot be read: No such .*save_pretrained"):
        huggingface.read_model(tmp_path)
    for content in ("[" * 100_000, "[]"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(BadInput, match=r"config\.json is not the config of a GPT-2"):
            huggingface.read_model(tmp_path)
    (tmp_path / "config.json").unlink()
    huggingface.write_model(tmp_path, MODEL, params)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(BadInput, match=r"model\.safetensors cannot be read"):
        huggingface.read_model(tmp_path)
    weights.unlink()
    with pytest.raises(BadInput, match=r"model\.safetensors cannot be read"):
        huggingface.read_model(tmp_path)


def test_a_name_that_cannot_be_had_asks_for_a_local_directory(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        BadInput, match=r"--model=hf:\./none: there is no such directory; give a local"
    ):
        huggingface.find("./none")
    hub = pytest.importorskip("huggingface_hub")

    def fail(*_, **__):
        raise hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(
        BadInput, match=r"--source=hf:gpt2 cannot be downloaded .* give a local directory"
    ):
        huggingface.find("gpt2", "source")
