"""prepare with files of a Hub on this machine: TinyStories, FineWeb, llm.c's ready-made shards."""

import dataclasses
import hashlib
import io
import json
import random
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmc_jax import prepare
from llmc_jax.config import BadInput
from llmc_jax.data import download, manifest
from llmc_jax.data.sources import fineweb
from llmc_jax.data.tokenizer import EOT, tokenizer
from llmc_jax.data.tokens import read_shard, write_shard
from llmc_jax.prepare import PrepareConfig

COMMIT = "0123abcd"


class Hub(ThreadingHTTPServer):
    """Data sets {repo: {path: bytes}} as Hugging Face serves them; two files a page of a list."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked = {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str):
        """Body and following page of an address; None where there is nothing."""
        path, _, cursor = path.partition("?cursor=")
        for repo, files in self.files.items():
            api = f"/api/datasets/{repo}"
            if path == f"{api}/revision/main":
                return json.dumps({"sha": COMMIT}).encode(), None
            if path.startswith(f"{api}/tree/{COMMIT}"):
                folder = path.removeprefix(f"{api}/tree/{COMMIT}").strip("/")
                entries = [
                    dict(type="file", path=p, size=len(data), oid="git's", lfs=lfs(data))
                    for p, data in files.items()
                    if "/".join(p.split("/")[:-1]) == folder
                ]
                page = entries[int(cursor or 0) :]
                following = f"{path}?cursor={int(cursor or 0) + 2}" if len(page) > 2 else None
                extra = [dict(type="directory", path="x", size=0, oid="0")]
                return json.dumps(extra + page[:2]).encode(), following
            if path.startswith(f"/datasets/{repo}/resolve/{COMMIT}/"):
                data = files.get(path.removeprefix(f"/datasets/{repo}/resolve/{COMMIT}/"))
                return data and (data, None)
        return None


def lfs(data: bytes) -> dict:
    return dict(oid=hashlib.sha256(data).hexdigest(), size=len(data), pointerSize=130)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        answer = self.server.answer(self.path)
        if answer is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer[0])))
        if answer[1]:
            self.send_header("Link", f'<{self.server.url}{answer[1]}>; rel="next"')
        self.end_headers()
        self.wfile.write(answer[0])

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(download, "FIRST_WAIT_S", 0.0)
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def config(hub, tmp_path, source: str, **options) -> PrepareConfig:
    usual = dict(hub=hub.url, workers=1, download_dir=f"{tmp_path}/downloads", shard_tokens=200)
    uses = (*prepare.DECIDING[source], *prepare.READING[source])
    of_source = {flag: value for flag, value in usual.items() if flag in uses}
    return PrepareConfig(source=source, output_dir=f"{tmp_path}/out", **of_source, **options)


def tokens_of(texts) -> list[int]:
    return [t for text in texts for t in (EOT, *tokenizer().encode_ordinary(text))]


def shards(tmp_path, split: str) -> list[int]:
    paths = sorted((tmp_path / "out").glob(f"*_{split}_*.bin"))
    return np.concatenate([read_shard(path) for path in paths]).tolist()


def parquet(texts) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": texts, "id": range(len(texts))}), file, row_group_size=3)
    return file.getvalue()


TEXTS = [f"Text {i} of the web. " * (i % 9 + 1) for i in range(30)]


@pytest.fixture
def web(hub):
    parts = {f"sample/10BT/{i:03d}_00000.parquet": TEXTS[10 * i : 10 * i + 10] for i in range(3)}
    files = {path: parquet(texts) for path, texts in parts.items()}
    hub.files = {repo: files | {"README.md": b"x"} for repo in fineweb.REPOS.values()}
    return hub


@pytest.mark.parametrize(("kind", "stem"), [("classic", "fineweb"), ("edu", "edu_fineweb")])
def test_fineweb(web, tmp_path, kind, stem):
    """As llm.c has it: the first shard is for validation, documents cross shards."""
    cfg = config(web, tmp_path, "fineweb", fineweb_type=kind)
    prepare.main(cfg)
    wanted = tokens_of(TEXTS)
    assert shards(tmp_path, "val") == wanted[:200] and shards(tmp_path, "train") == wanted[200:]
    assert (tmp_path / f"out/{stem}_val_000000.bin").exists()
    assert (tmp_path / f"out/{stem}_train_000001.bin").exists()
    assert not (tmp_path / f"out/{stem}_train_000000.bin").exists()
    inputs = json.loads((tmp_path / "out/manifest.json").read_bytes())["inputs"]
    assert [i["file"] for i in inputs] == [f"{i:03d}_00000.parquet" for i in range(3)]
    web.asked.clear()
    (tmp_path / f"out/{stem}_train_000002.bin").unlink()
    prepare.main(cfg)
    assert web.asked == [] and shards(tmp_path, "train") == wanted[200:]


def test_the_sample_of_fineweb_is_its_first_file(web, tmp_path):
    prepare.main(config(web, tmp_path, "fineweb", fineweb_version="sample"))
    assert shards(tmp_path, "val") + shards(tmp_path, "train") == tokens_of(TEXTS[:10])


def test_fineweb_that_was_fetched_by_hand(web, tmp_path):
    url = web.url
    cfg = config(web, tmp_path, "fineweb")
    lost = dataclasses.replace(cfg, hub=url.replace(str(web.server_port), "1"))
    folder = tmp_path / "downloads/fineweb_sample_10BT"
    with pytest.raises(
        BadInput,
        match=rf"/datasets/HuggingFaceFW/fineweb/tree/main/sample/10BT cannot be listed "
        rf"\(Connection refused\); fetch \*\.parquet by hand, put it into {folder}, and give the "
        rf"same command again",
    ):
        prepare.main(lost)
    folder.mkdir(parents=True)
    for path, data in web.files["HuggingFaceFW/fineweb"].items():
        (folder / Path(path).name).write_bytes(data)
    prepare.main(lost)
    assert shards(tmp_path, "val") + shards(tmp_path, "train") == tokens_of(TEXTS)
    other = dataclasses.replace(lost, input=f"{folder}/*.parquet", output_dir=f"{tmp_path}/b")
    prepare.main(other)  # or named
    assert len(list((tmp_path / "b").glob("*.bin"))) == len(list((tmp_path / "out").glob("*.bin")))


def test_a_list_that_is_gone(web, tmp_path):
    web.files.clear()
    cfg = config(web, tmp_path, "fineweb")
    with pytest.raises(BadInput, match=r"cannot be listed \(the server says 404"):
        prepare.main(cfg)
    web.answer = lambda path: (b"<html>a password, please</html>", None)
    with pytest.raises(BadInput, match=r"cannot be listed \(what answers there is not the Hub\)"):
        prepare.main(cfg)


@pytest.mark.parametrize(
    "kept",
    [b"", b"[]", b"[" * 100_000, b"{}", b'{"files": [{"url": "http://elsewhere"}]}', None],
    ids=lambda value: repr(value)[:30],
)
def test_a_listing_that_is_broken_or_of_another_folder_is_made_again(web, tmp_path, kept):
    """None: it is FineWeb-Edu's."""
    folder = tmp_path / "downloads/fineweb_sample_10BT"
    folder.mkdir(parents=True)
    if kept is None:
        prepare.main(config(web, tmp_path / "edu", "fineweb", fineweb_type="edu"))
        kept = next((tmp_path / "edu/downloads").rglob("hub.json")).read_bytes()
    (folder / "hub.json").write_bytes(kept)
    web.asked.clear()
    prepare.main(config(web, tmp_path, "fineweb", fineweb_version="sample"))
    assert shards(tmp_path, "val") + shards(tmp_path, "train") == tokens_of(TEXTS[:10])
    assert not any("edu" in address for address in web.asked)


@pytest.mark.parametrize(
    ("address", "reason"),
    [("http://127.0.0.1:1", "Connection refused"), ("nowhere", "unknown url type")],
)
def test_a_listing_serves_for_another_hub(web, tmp_path, address, reason):
    """The same files are fetched from where --hub says now."""
    cfg = config(web, tmp_path, "fineweb", fineweb_version="sample")
    prepare.main(cfg)
    (tmp_path / "downloads/fineweb_sample_10BT/000_00000.parquet").unlink()
    wanted = rf"{address}/datasets/HuggingFaceFW/fineweb/resolve/{COMMIT}/sample/10BT/000_00000"
    with pytest.raises(BadInput, match=rf"{wanted}.parquet cannot be downloaded \({reason}"):
        prepare.main(dataclasses.replace(cfg, hub=address))


@pytest.fixture
def ready(hub, tmp_path):
    """A repository with three shards for training and one for validation."""
    names = [f"fineweb_train_{i:06d}.bin" for i in (1, 2, 3)] + ["fineweb_val_000000.bin"]
    files = {}
    for number, name in enumerate(names):
        write_shard(tmp_path / "shard", np.arange(100 + number))
        files[name] = (tmp_path / "shard").read_bytes()
    hub.files = {fineweb.READY["classic"]: files}
    return hub


def test_ready_made_shards(ready, tmp_path, capsys, monkeypatch):
    cfg = config(ready, tmp_path, "fineweb_shards", max_shards=2)
    prepare.main(cfg)
    files = ready.files[fineweb.READY["classic"]]
    names = ["fineweb_train_000001.bin", "fineweb_train_000002.bin", "fineweb_val_000000.bin"]
    found = sorted((tmp_path / "out").glob("*.bin"))
    assert [path.name for path in found] == names
    assert all(path.read_bytes() == files[path.name] for path in found)
    prepare.main(dataclasses.replace(cfg, verify=True))
    assert "3 shards, 304 tokens, as in the manifest" in capsys.readouterr().out
    ready.asked.clear()
    monkeypatch.setattr(manifest, "sha256_of", None)  # of what is there the download makes it
    prepare.main(dataclasses.replace(cfg, max_shards=3))
    assert ready.asked == [f"/datasets/{fineweb.READY['classic']}/resolve/{COMMIT}/"
                           "fineweb_train_000003.bin"]  # fmt: skip
    with pytest.raises(BadInput, match=r"has no fineweb_train_000004\.bin; lower --max_shards"):
        prepare.main(dataclasses.replace(cfg, max_shards=4))
    with pytest.raises(BadInput, match=r"--max_shards=1029 is too many: there are 1028"):
        prepare.main(dataclasses.replace(cfg, max_shards=1029))


def test_a_ready_made_shard_that_is_none(ready, tmp_path):
    ready.files[fineweb.READY["classic"]]["fineweb_train_000001.bin"] = b"not a shard"
    with pytest.raises(BadInput, match=r"fineweb_train_000001\.bin is not a token shard"):
        prepare.main(config(ready, tmp_path, "fineweb_shards", max_shards=1))


STORIES = [[f" Story {i} of file {n}.\n" for i in range(40)] for n in range(3)]


def archive(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def stories_archive() -> bytes:
    return archive({
        f"./data{n:02d}.json": json.dumps([dict(story=s, summary="") for s in part]).encode()
        for n, part in enumerate(STORIES)
    })  # fmt: skip


def test_tinystories(hub, tmp_path):
    """llm.c's split, its shuffle and its stripped stories, the files in order."""
    hub.files = {"roneneldan/TinyStories": {"TinyStories_all_data.tar.gz": stories_archive()}}
    cfg = config(hub, tmp_path, "tinystories")
    prepare.main(cfg)

    def shuffled(part, seed):
        part = list(part)
        random.Random(seed).shuffle(part)
        return [story.strip() for story in part]

    assert shards(tmp_path, "val") == tokens_of(shuffled(STORIES[0], 1337))
    train = shuffled(STORIES[1], 1337) + shuffled(STORIES[2], 1338)
    assert shards(tmp_path, "train") == tokens_of(train)
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for path in sorted((tmp_path / "out").glob("*.bin"))[2:]:
        path.unlink()
    prepare.main(cfg)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no archive", r"a\.tar\.gz is not an archive, .*; name another with --input"),
        (stories_archive()[:300], "is not an archive, or a broken one"),
        (archive({"data00.json": b"[]"}), "holds 1 files of stories; two are needed"),
        (archive({f"{n}.json": b'[{"text": 1}]' for n in "ab"}), r"\.json is no list of stories"),
    ],
)
def test_bad_archives_are_named(hub, tmp_path, data, message):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(data)
    with pytest.raises(BadInput, match=message):
        prepare.main(config(hub, tmp_path, "tinystories", input=str(path)))


def test_tinyshakespeare_is_fetched_by_hand_where_there_is_no_network(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "LONGEST_WAIT_S", 0.0)
    module = prepare.tinyshakespeare
    monkeypatch.setattr(module, "URL", f"{hub.url}/input.txt")
    with pytest.raises(
        BadInput,
        match=r"/input\.txt cannot be downloaded .*404.*; fetch it by hand, put it at "
        r".*downloads/tinyshakespeare\.txt, and give the same command again",
    ):
        prepare.main(config(hub, tmp_path, "tinyshakespeare"))


def test_a_kept_shard_that_was_changed_is_named(ready, tmp_path):
    """By the Hub's checksum; where nothing lists it any more, by the manifest's."""
    cfg = config(ready, tmp_path, "fineweb_shards", max_shards=1)
    prepare.main(cfg)
    path = tmp_path / "out/fineweb_train_000001.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(BadInput, match=r"000001\.bin has the SHA-256 \w+ instead of \w+; rem"):
        prepare.main(cfg)
    (tmp_path / "out/hub.json").unlink()
    ready.files.clear()
    with pytest.raises(BadInput, match=r"000001\.bin has the SHA-256 \w+ and its manifest says"):
        prepare.main(cfg)
