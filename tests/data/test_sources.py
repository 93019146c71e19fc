"""prepare: GPT-2's tokenizer without a network, exact sources, refusals."""

import dataclasses
import hashlib
import json
import os

import numpy as np
import pytest

from llmc_jax import prepare
from llmc_jax.config import BadInput
from llmc_jax.data import tokenizer as module
from llmc_jax.data.sources import pystdlib, tinyshakespeare
from llmc_jax.data.tokenizer import EOT, tokenizer
from llmc_jax.data.tokens import find_shards, read_shard
from llmc_jax.prepare import PrepareConfig
from tests import golden


def test_the_tokenizer_is_gpt2s():
    encoding = tokenizer()
    assert encoding.n_vocab == 50257 and encoding.eot_token == EOT
    assert encoding.encode_ordinary("hello world, Grüße") == [
        31373, 995, 11, 1902, 9116, 39683, 68,
    ]  # fmt: skip
    assert encoding.decode(encoding.encode_ordinary("def f(x):\n    return x")) == (
        "def f(x):\n    return x"
    )


def test_a_wrong_vocabulary_file_is_refused(monkeypatch):
    """tiktoken itself checks the files' SHA-256."""
    monkeypatch.setattr(module, "VOCAB_BPE_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="Hash mismatch"):
        module._from_package()


def test_pystdlib_is_python_and_its_manual_split_by_file():
    train, val = pystdlib.documents()
    assert (train, val) == pystdlib.documents()
    assert len(train) > 300 and 0.01 < len(val) / len(train) < 0.15
    assert not set(train) & {text for text in val if text}
    text = "\n".join(train + val)
    assert "class JSONDecoder" in text  # json/decoder.py
    assert 'The "if" statement is used for conditional execution' in text.replace("\n", " ")


def test_pystdlib_takes_files_only(tmp_path):
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "link.py").symlink_to("nowhere")
    (tmp_path / "module.py").write_text("x = 1")
    assert list(pystdlib._modules(tmp_path)) == [("module.py", "x = 1")]


def test_tinyshakespeare_is_tokenised_as_llm_c_does(tmp_path, monkeypatch):
    """On the part of the text that the golden runs read: text from the tokens, and back."""
    wanted = golden.tokens("train")[5:8000]
    wanted = wanted[np.flatnonzero(wanted == EOT)[0] :]
    wanted = wanted[: np.flatnonzero(wanted == EOT)[-1] + 1]
    text = tokenizer().decode(wanted.tolist()).replace("<|endoftext|>", "").encode()
    path = tmp_path / "input.txt"
    path.write_bytes(text)
    monkeypatch.setattr(tinyshakespeare, "SHA256", hashlib.sha256(text).hexdigest())
    monkeypatch.setattr(tinyshakespeare, "VAL_TOKENS", 100)
    cfg = PrepareConfig(
        source="tinyshakespeare", input=str(path), output_dir=f"{tmp_path}/out", shard_tokens=70,
        workers=1,
    )  # fmt: skip
    prepare.main(cfg)
    train, val = (shards(tmp_path / "out", split) for split in ("train", "val"))
    assert [len(part) for part in val] == [70, 30] and {len(part) for part in train[:-1]} == {70}
    assert np.array_equal(np.concatenate(val + train), wanted)
    path.write_bytes(text + b"\n")
    with pytest.raises(BadInput, match="is not the Tiny Shakespeare"):
        prepare.main(cfg)


def shards(folder, split: str) -> list[np.ndarray]:
    return [read_shard(path) for path in sorted(folder.glob(f"*_{split}_*.bin"))]


@pytest.fixture
def text_config(tmp_path):
    (tmp_path / "a.txt").write_text("The first document. " * 50)
    (tmp_path / "b.txt").write_text("And the second. " * 50)
    return PrepareConfig(
        source="text", input=f"{tmp_path}/*.txt", output_dir=f"{tmp_path}/out",
        val_fraction=0.1, shard_tokens=100, workers=1,
    )  # fmt: skip


def test_text_files_become_shards_that_read_back(text_config, tmp_path):
    prepare.main(text_config)
    train, val = (shards(tmp_path / "out", split) for split in ("train", "val"))
    assert all(len(part) == 100 for part in train[:-1])
    train, val = np.concatenate(train), np.concatenate(val)
    assert train[0] == val[0] == EOT and (train == EOT).sum() == 2 and (val == EOT).sum() == 1
    assert len(val) == pytest.approx(0.1 * len(train), abs=15)
    text = "<|endoftext|>".join(["", "The first document. " * 50, "And the second. " * 50])
    assert tokenizer().decode([*train.tolist(), *val[1:].tolist()]) == text


def test_what_to_train_with_names_no_shards_that_are_not_there(text_config, tmp_path, capsys):
    prepare.main(text_config)
    assert "_train_*.bin' --val_data=" in capsys.readouterr().out
    without = f"{tmp_path}/without"
    prepare.main(dataclasses.replace(text_config, val_fraction=0, output_dir=without))
    told = capsys.readouterr().out.splitlines()[-1]
    assert told.startswith(f"train on them with --train_data='{without}/text_train_*.bin' --val_")
    assert "--val_every=0: there is no validation shard; for one give more text" in told
    prepare.main(dataclasses.replace(text_config, output_dir=f"{tmp_path}/br[v2]"))
    pattern = capsys.readouterr().out.split("--train_data='")[1].split("'")[0]
    assert find_shards("train_data", pattern)[0] == f"{tmp_path}/br[v2]/text_train_000000.bin"
    assert "there is no training shard" in prepare.how_to_train("x", ["x_val_000000.bin"])


def test_prepare_again_is_harmless_and_other_text_is_refused(text_config, tmp_path):
    prepare.main(text_config)
    before = {p: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    prepare.main(text_config)
    turned = dataclasses.replace(text_config, input=f"{tmp_path}/b.txt,{tmp_path}/a.txt")
    with pytest.raises(BadInput, match=r"order a\.txt, b\.txt and are now in the order b\.txt, a"):
        prepare.main(turned)
    with pytest.raises(BadInput, match=r"the text has changed \(there is less of it\)"):
        prepare.main(dataclasses.replace(text_config, input=f"{tmp_path}/a.txt"))
    (tmp_path / "a.txt").write_text("Something else. " * 50)
    with pytest.raises(BadInput, match=r"the text has changed \(a.txt\)"):
        prepare.main(text_config)
    assert before == {p: p.read_bytes() for p in (tmp_path / "out").iterdir()}


def test_lines_may_end_as_on_windows(text_config, tmp_path):
    """They are kept, and what is for validation begins at the byte where it should."""
    text = "A line of text.\r\n" * 500
    (tmp_path / "c.txt").write_bytes(text.encode())
    cfg = dataclasses.replace(text_config, input=f"{tmp_path}/c.txt", val_fraction=0.5)
    prepare.main(cfg)
    train, val = (
        tokenizer().decode(np.concatenate(shards(tmp_path / "out", split))[1:].tolist())
        for split in ("train", "val")
    )
    assert train + val == text
    assert 0 <= len(train) - len(text) / 2 < 20  # up to the next space


@pytest.mark.parametrize("line", ["Слово за словом\n", "日本語\r\n", "😀\u3000 "])
def test_text_without_ascii_is_split_too(text_config, tmp_path, line):
    """Shards from before it was are not gone on with: there, all was for training."""
    (tmp_path / "c.txt").write_bytes((line * 100).encode())
    cfg = dataclasses.replace(text_config, input=f"{tmp_path}/c.txt", val_fraction=0.5)
    prepare.main(cfg)
    train, val = (
        tokenizer().decode(np.concatenate(shards(tmp_path / "out", split))[1:].tolist())
        for split in ("train", "val")
    )
    assert train + val == line * 100
    assert 0 <= len(train.encode()) - len((line * 50).encode()) < len(line.encode())
    path = tmp_path / "out" / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["inputs"][0].pop("validation_from") == len(train.encode())
    path.write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match=r"validation began elsewhere in c\.txt; give the old"):
        prepare.main(cfg)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9", r"c.txt is not UTF-8 \(byte 3\)"),
        ("é".encode() * 2**20 + b"\xff", r"c.txt is not UTF-8 \(byte 2097152\)"),
        (b"a" + "é".encode() * 2**19 + b"\xff", r"c.txt is not UTF-8 \(byte 1048577\)"),
        (b"", "c.txt is empty"),
    ],
    ids=["end", "later", "astride", "empty"],
)
def test_unusable_text_is_named(text_config, tmp_path, content, message):
    (tmp_path / "c.txt").write_bytes(content)
    with pytest.raises(BadInput, match=message):
        prepare.main(text_config)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_named_before_anything_is_fetched(
    text_config, tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(prepare, "_source", lambda _: pytest.fail("fetched"))
    cfg = dataclasses.replace(text_config, output_dir=f"{tmp_path}/file/out")
    with pytest.raises(BadInput, match=r"--output_dir=.*/out cannot be made: Not a directory"):
        prepare.main(cfg)


def test_a_pipe_is_no_input(text_config, tmp_path):
    """It would be read twice."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match="pipe cannot be read: it is a pipe or a device"):
        prepare.main(dataclasses.replace(text_config, input=f"{tmp_path}/pipe"))


@pytest.mark.parametrize("source", prepare.DECIDING)
def test_every_source_says_what_it_uses(source):
    """Each flag is for all sources, or named by those that use it; another's is refused."""
    for_all = {"source", "output_dir", "verify"}
    flags = {field.name for field in dataclasses.fields(PrepareConfig)} - for_all
    uses = {*prepare.DECIDING[source], *prepare.READING[source]}
    assert uses <= flags
    for flag in flags:
        cfg = PrepareConfig(**{"source": source, flag: "another"})
        if flag in uses:
            prepare.refuse_unused(cfg)
            continue
        with pytest.raises(BadInput, match=f"^--source={source} does not use --{flag}; leave it"):
            prepare.refuse_unused(cfg)


def test_missing_input_is_named(text_config):
    folder = text_config.input.removesuffix("/*.txt")
    for source, input, message in (
        ("text", "", "--source=text needs --input"),
        ("text", "/nowhere/*.txt", "matches no file"),
        (
            "text",
            folder,
            rf"--input={folder}: .*is a directory; name only files, .* by {folder}/\*",
        ),
        ("tinyshakespeare", "/nowhere/a.txt", "cannot be read"),
        ("pystdlib", "/nowhere/a.txt", "--source=pystdlib does not use --input; leave it out"),
    ):
        with pytest.raises(BadInput, match=message):
            prepare.main(
                PrepareConfig(source=source, input=input, output_dir=text_config.output_dir)
            )
