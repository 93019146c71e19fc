"""prepare: the same shards whatever the workers, the batches and the kills; what it refuses."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmc_jax import prepare
from llmc_jax.config import BadInput, RunStopped
from llmc_jax.data import pipeline
from llmc_jax.data.tokenizer import EOT, tokenizer
from llmc_jax.data.tokens import read_shard, write_shard
from llmc_jax.lock import locked
from llmc_jax.prepare import PrepareConfig

ROOT = Path(prepare.__file__).parents[1]
DOCUMENTS = [f"Document {i}:  it's {'very ' * (i * 7 % 50)}long.\n\n  é" for i in range(120)]
DOCUMENTS[40] = " ".join(f"word{i}\n" for i in range(2000))  # longer than a batch of the tests
DOCUMENTS[41] = ""


@pytest.fixture
def lines(tmp_path):
    """A file of JSON lines, and the configuration that makes shards of it."""
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"body": text, "id": 1}) + "\n" for text in DOCUMENTS))
    return PrepareConfig(
        source="jsonl", input=str(path), field="body", output_dir=f"{tmp_path}/out", workers=1,
        shard_tokens=1000, val_fraction=0.2,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(pipeline, "BATCH", 1500)


def command(cfg, **changes) -> list[str]:
    options = dataclasses.asdict(dataclasses.replace(cfg, **changes))
    usual = dataclasses.asdict(PrepareConfig())
    flags = [f"--{name}={value}" for name, value in options.items() if value != usual[name]]
    return [sys.executable, "-m", "llmc_jax.prepare", *flags]


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def whole(cfg) -> dict[str, bytes]:
    """The files of a run that nothing disturbs."""
    folder = cfg.output_dir + "_whole"
    prepare.main(dataclasses.replace(cfg, output_dir=folder))
    return files(folder)


def shards(folder, split: str) -> np.ndarray:
    return np.concatenate([read_shard(p) for p in sorted(Path(folder).glob(f"*_{split}_*.bin"))])


def test_json_lines_become_shards(lines):
    prepare.main(lines)
    wanted = [t for text in DOCUMENTS for t in (EOT, *tokenizer().encode_ordinary(text))]
    train, val = (shards(lines.output_dir, split) for split in ("train", "val"))
    assert np.array_equal(np.concatenate([train, val]), wanted) and val[0] == EOT
    manifest = json.loads(files(lines.output_dir)["manifest.json"])
    assert manifest["complete"] and manifest["source"] == "jsonl"
    assert manifest["tokens"] == {"train": len(train), "val": len(val)}
    assert manifest["options"] == {"field": "body", "val_fraction": 0.2, "shard_tokens": 1000}
    assert [file["file"] for file in manifest["inputs"]] == ["in.jsonl"]
    assert all(shard["tokens"] <= 1000 for shard in manifest["shards"])


def test_parquet_files_become_the_same_shards(lines, tmp_path):
    """In files and row groups of any size; the last rows are for validation."""
    for number, (a, b) in enumerate([(0, 50), (50, 51), (51, 120)]):
        table = pa.table({"id": range(a, b), "body": DOCUMENTS[a:b]})
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=7)
    cfg = dataclasses.replace(
        lines, source="parquet", input=f"{tmp_path}/*.parquet", val_fraction=0.25
    )
    prepare.main(cfg)
    for split, texts in (("train", DOCUMENTS[:90]), ("val", DOCUMENTS[90:])):
        wanted = [t for text in texts for t in (EOT, *tokenizer().encode_ordinary(text))]
        assert np.array_equal(shards(cfg.output_dir, split), wanted)
    interrupted(dataclasses.replace(cfg, output_dir=f"{tmp_path}/again"), 3)


def interrupted(cfg, count: int) -> None:
    """Stopped after `count` shards, the same command makes what an undisturbed one makes."""

    class Stop(Exception):
        pass

    written, write = [], pipeline.write_shard

    def stop(path, tokens):
        if len(written) == count:
            raise Stop
        written.append(path)
        write(path, tokens)

    wanted = whole(cfg)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "write_shard", stop)
        with pytest.raises(Stop):
            prepare.main(cfg)
    assert len(list(Path(cfg.output_dir).glob("*.bin"))) == count
    encoded, encode = [], pipeline.encode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "encode", lambda texts: encoded.extend(texts) or encode(texts))
        prepare.main(cfg)
    assert files(cfg.output_dir) == wanted
    tokens = sum(len(read_shard(p)) for p in Path(cfg.output_dir).glob("*.bin"))
    again = sum(len(encode([text])) for text in encoded) - (tokens - 1000 * count)
    # What is finished is not tokenised again, but for a document of which a part is missing.
    assert again <= len(encode([DOCUMENTS[40]])) + len(encoded)


@pytest.mark.parametrize("count", [0, 1, 4, 9])
def test_stopped_after_some_shards(lines, count):
    interrupted(lines, count)


def test_shards_that_end_where_documents_end(lines, tmp_path):
    """Also there the next run begins at the right token."""
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"body": " a" * 9}) + "\n" for _ in range(40)))
    for count in (1, 2, 3):
        cfg = dataclasses.replace(lines, shard_tokens=100, output_dir=f"{tmp_path}/{count}")
        wanted = whole(cfg)
        prepare.main(cfg)
        for shard in sorted(Path(cfg.output_dir).glob("*.bin"))[-count:]:
            shard.unlink()  # made again, from the one before on
        prepare.main(cfg)
        assert files(cfg.output_dir) == wanted


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_change_nothing(lines, workers):
    wanted = whole(lines)
    subprocess.run(command(lines, workers=workers), cwd=ROOT, check=True, capture_output=True)
    assert files(lines.output_dir) == wanted


@pytest.mark.parametrize("cores", [1, 3])
def test_no_more_workers_than_cores_are_started(lines, monkeypatch, capsys, cores):
    """Than this process may run on, which may be fewer than there are."""
    asked = []

    def write(*_, workers):
        asked.append(workers)
        return iter(())

    monkeypatch.setattr(pipeline, "write", write)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    for workers in (0, 100_000):
        with pytest.raises(BadInput, match="holds no text"):
            prepare.main(dataclasses.replace(lines, workers=workers))
    assert asked == 4 * [cores]
    told = f"--workers=100000 is more than there are cores to run on: {cores} are started"
    assert capsys.readouterr().out.splitlines() == [told]


def test_killed_and_started_again(tmp_path):
    """SIGKILL once shards appear, at three moments; the workers end too."""
    path = tmp_path / "in.jsonl"
    text = " ".join(f"w{i % 977} ü{i % 89}" for i in range(400))
    path.write_text("".join(json.dumps({"text": f"{i} {text}"}) + "\n" for i in range(700)))
    cfg = PrepareConfig(
        source="jsonl", input=str(path), output_dir=f"{tmp_path}/out", workers=2,
        shard_tokens=40_000,
    )  # fmt: skip
    killed = 0
    for seen in (1, 6, 12):
        process = subprocess.Popen(
            command(cfg), cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True
        )
        while process.poll() is None and len(list(tmp_path.glob("out/*.bin"))) < seen:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        group = process.pid
    assert killed >= 2
    subprocess.run(command(cfg), cwd=ROOT, check=True, capture_output=True)
    assert files(cfg.output_dir) == whole(dataclasses.replace(cfg, workers=1))
    with pytest.raises(ProcessLookupError):
        for _ in range(500):
            os.killpg(group, 0)
            time.sleep(0.01)


def exit_at_once(batch):
    os._exit(1)


def test_a_killed_worker_is_said(lines, monkeypatch):
    monkeypatch.setattr(pipeline, "_encode", exit_at_once)
    cfg = dataclasses.replace(lines, workers=2)
    with pytest.raises(RunStopped, match=r"a worker process was killed.*with fewer --workers"):
        prepare.main(cfg)


def test_again_nothing_is_made_anew(lines, monkeypatch, capsys):
    prepare.main(lines)
    before = files(lines.output_dir)
    monkeypatch.setattr(pipeline, "encode", None)
    prepare.main(lines)
    assert "tokens, there already" in capsys.readouterr().out
    assert files(lines.output_dir) == before


def test_verify(lines, capsys):
    with pytest.raises(BadInput, match=r"out/manifest\.json is not there; --verify needs"):
        prepare.main(dataclasses.replace(lines, verify=True))
    prepare.main(lines)
    verify = dataclasses.replace(lines, verify=True)
    prepare.main(verify)
    assert "shards, " in capsys.readouterr().out.splitlines()[-1]
    shard = Path(lines.output_dir) / "jsonl_train_000002.bin"
    data = bytearray(shard.read_bytes())
    data[1500] ^= 1
    shard.write_bytes(data)
    wrong = r"jsonl_train_000002\.bin has the SHA-256 \w+ and its manifest says \w+; remove it"
    for cfg in (verify, lines):
        with pytest.raises(BadInput, match=wrong):
            prepare.main(cfg)
    write_shard(shard, np.zeros(7))
    with pytest.raises(BadInput, match="has 7 tokens and its manifest says 1000; remove it"):
        prepare.main(verify)
    shard.unlink()
    with pytest.raises(BadInput, match=r"jsonl_train_000002\.bin cannot be read"):
        prepare.main(verify)
    prepare.main(lines)
    prepare.main(verify)
    write_shard(shard.with_name("jsonl_train_000099.bin"), np.zeros(7))
    for cfg in (verify, lines):
        with pytest.raises(BadInput, match=r"jsonl_train_000099\.bin is none of the"):
            prepare.main(cfg)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(shard_tokens=999), "--shard_tokens was 1000 and is now 999; give the old command"),
        (dict(val_fraction=0.1), "--val_fraction was 0.2 and is now 0.1"),
        (dict(field="id"), "--field was body and is now id"),
        (dict(source="parquet"), "--source was jsonl and is now parquet"),
    ],
)
def test_other_work_in_the_same_folder_is_refused(lines, changes, message):
    prepare.main(lines)
    before = files(lines.output_dir)
    if "source" in changes:
        changes["input"] = str(Path(lines.input).with_name("a.parquet"))
        pq.write_table(pa.table({"body": ["text"]}), changes["input"])
    with pytest.raises(BadInput, match=message):
        prepare.main(dataclasses.replace(lines, **changes))
    assert files(lines.output_dir) == before


def test_two_in_one_folder_are_refused(lines):
    Path(lines.output_dir).mkdir()
    with (
        locked(Path(lines.output_dir)),
        pytest.raises(BadInput, match=r"--output_dir=.*out is in use by process \d+ on .*; wait"),
    ):
        prepare.main(lines)
    prepare.main(lines)


def test_a_stranger_in_the_folder_is_found_before_the_work(lines):
    Path(lines.output_dir).mkdir()
    write_shard(Path(lines.output_dir) / "x.bin", np.zeros(7))
    with pytest.raises(BadInput, match=r"out/x\.bin is none of the shards jsonl_\*\.bin; rem"):
        prepare.main(lines)
    assert sorted(files(lines.output_dir)) == ["lock", "x.bin"]


def test_other_shards_without_a_manifest_are_refused(lines):
    write_shard_at = Path(lines.output_dir)
    write_shard_at.mkdir()
    write_shard(write_shard_at / "jsonl_train_000000.bin", np.zeros(7))
    with pytest.raises(BadInput, match="holds other tokens than would be written; remove it"):
        prepare.main(lines)


@pytest.mark.parametrize("content", ['{"shards": 3', "[" * 100_000], ids=["cut", "deep"])
def test_a_broken_manifest_is_named(lines, content):
    Path(lines.output_dir).mkdir()
    (Path(lines.output_dir) / "manifest.json").write_text(content)
    with pytest.raises(BadInput, match=r"manifest\.json is no manifest of shards; remove it"):
        prepare.main(lines)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"body": "a"', r"in\.jsonl, line 121 is not JSON \(.*\); correct the line"),
        (b"[" * 100_000, r"in\.jsonl, line 121 is not JSON \(maximum recursion depth"),
        (b"1" * 5000, r"in\.jsonl, line 121 is not JSON \(Exceeds the limit"),
        (b'{"text": "a"}', "line 121 has no text in the field 'body' .it has text.; name another"),
        (b'{"body": 7}', "line 121 has no text in the field 'body'"),
        (b"[1]", r"line 121 has no text in the field 'body' \(it has no object\)"),
        (b'{"body": "caf\xe9"}', "line 121 is not UTF-8"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_bad_line_is_named(lines, line, message):
    path = Path(lines.input)
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(BadInput, match=message):
        prepare.main(lines)


def test_files_without_documents(lines, tmp_path):
    Path(lines.input).write_text("\n \n")
    with pytest.raises(BadInput, match=r"in\.jsonl holds no lines"):
        prepare.main(lines)
    pq.write_table(pa.table({"body": pa.array([], pa.string())}), tmp_path / "a.parquet")
    cfg = dataclasses.replace(lines, source="parquet", input=f"{tmp_path}/a.parquet")
    with pytest.raises(BadInput, match=r"a\.parquet holds no rows"):
        prepare.main(cfg)
    with pytest.raises(BadInput, match="--source=jsonl needs --input"):
        prepare.main(dataclasses.replace(lines, input=""))
    assert not Path(lines.output_dir).exists()


def test_bad_parquet_is_named(lines, tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    cfg = dataclasses.replace(lines, source="parquet", input=str(path))
    for content, message in (
        (b"no parquet at all", r"a\.parquet cannot be read as parquet \(.*\); fetch or make it"),
        ({"text": ["a"]}, r"a\.parquet has no column 'body' \(it has text\); name another"),
        ({"body": [1, 2]}, r"a\.parquet, row 1 has no text in the column 'body' \(it is int64, "),
        (
            {"body": ["a"] * 5 + [None] * 7},
            r"row 6 .*\(it is string, here None\); name another with ",
        ),
    ):
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            pq.write_table(pa.table(content), path, row_group_size=4)
        with pytest.raises(BadInput, match=message):
            prepare.main(cfg)
    pq.write_table(pa.table({"body": ["some text " * 9] * 999}), path, compression="none")
    data = bytearray(path.read_bytes())
    data[4:40] = bytes(36)
    path.write_bytes(data)
    with pytest.raises(BadInput, match=r"a\.parquet cannot be read as parquet"):
        prepare.main(cfg)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(BadInput, match=r"is read with pyarrow: pip install pyarrow"):
        prepare.main(cfg)


def test_a_full_disk_loses_no_finished_shard(lines):
    wanted = whole(lines)
    folder = Path(lines.output_dir)
    folder.mkdir()
    (folder / "jsonl_train_000003.bin.tmp").symlink_to("/dev/full")
    with pytest.raises(
        BadInput,
        match=r"000003\.bin cannot be written: No space left on device; make room and give the "
        r"same command again, finished shards are kept",
    ):
        prepare.main(lines)
    names = [shard["file"] for shard in json.loads(files(folder)["manifest.json"])["shards"]]
    assert names == [f"jsonl_train_{i:06d}.bin" for i in range(3)]
    prepare.main(lines)
    assert files(folder) == wanted


def test_too_many_tokens_in_a_shard(lines):
    with pytest.raises(BadInput, match="--shard_tokens=2147483648 is too many: at most 2147483647"):
        prepare.main(dataclasses.replace(lines, shard_tokens=2**31))
