"""Downloads from a server on this machine that breaks off, refuses, forgets and lies."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llmc_jax.config import BadInput
from llmc_jax.data import download as module
from llmc_jax.data.download import download

DATA = bytes(range(256)) * 400
SHA256 = hashlib.sha256(DATA).hexdigest()


class Server(ThreadingHTTPServer):
    """Answers with DATA, each time as the next word of `script` wants; the last word stays.

    whole, break (half of what is asked for), no range (the whole whatever is asked for),
    unavailable, missing, other (another version, with another tag), wrong (the same tag),
    other range (it begins 100 bytes late), short range (half of what is asked for, and says so).
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.asked, self.tag = ["whole"], [], '"v1"'
        self.url = f"http://127.0.0.1:{self.server_port}/data.bin"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        word = server.script.pop(0) if len(server.script) > 1 else server.script[0]
        server.asked.append(self.headers.get("Range"))
        if word in ("unavailable", "missing"):
            return self.send_error(503 if word == "unavailable" else 404)
        data, tag = (DATA[::-1], '"v2"') if word == "other" else (DATA, server.tag)
        data = data[:-1] + b"?" if word == "wrong" else data
        start = self.start(tag) if word != "no range" else 0
        if start >= len(data):
            return self.send_error(416)
        start += 100 if word == "other range" else 0
        end = (start + len(data)) // 2 if word == "short range" else len(data)
        partial = start > 0 or end < len(data)
        self.send_response(206 if partial else 200)
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.send_header("Content-Length", str(end - start))
        if tag:
            self.send_header("ETag", tag)
        self.end_headers()
        body = data[start:end]
        self.wfile.write(body[: len(body) // 2] if word == "break" else body)

    def start(self, tag: str) -> int:
        """The first byte that is asked for; 0 where the rest is of another version."""
        condition = self.headers.get("If-Range")
        asked = self.headers.get("Range", "bytes=0-")
        return int(asked[6:-1]) if condition in (None, tag) else 0

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.0)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("sha256", [SHA256, None])
@pytest.mark.parametrize(
    ("script", "ranges"),
    [
        (["whole"], [None]),
        (["break", "break", "whole"], [None, "bytes=51200-", "bytes=76800-"]),
        (["unavailable", "unavailable", "whole"], [None] * 3),
        (["break", "no range"], [None, "bytes=51200-"]),
        (["break", "other range", "whole"], [None, "bytes=51200-", None]),
        (["other range", "whole"], [None, None]),
        (["short range", "short range", "whole"], [None, "bytes=51200-", "bytes=76800-"]),
    ],
)
def test_a_file_arrives_whole(server, tmp_path, script, ranges, sha256):
    server.script = list(script)
    path = tmp_path / "new" / "data.bin"
    assert download(server.url, path, sha256=sha256) == path
    assert path.read_bytes() == DATA and server.asked == ranges
    assert [p.name for p in path.parent.iterdir()] == ["data.bin"]
    download(server.url, path, sha256=sha256)
    assert len(server.asked) == len(ranges)  # what is there is not fetched again


def broken_off(server, path) -> bytes:
    """What is left of a download that was given up."""
    server.script = ["break", "unavailable"]
    with pytest.raises(BadInput, match="503"):
        download(server.url, path, retries=1)
    server.asked.clear()
    return (path.parent / "data.bin.part").read_bytes()


def test_a_later_call_goes_on_where_the_last_one_stopped(server, tmp_path):
    path = tmp_path / "data.bin"
    assert broken_off(server, path) == DATA[:51200] and not path.exists()
    server.script = ["whole"]
    download(server.url, path)
    assert server.asked == ["bytes=51200-"] and path.read_bytes() == DATA


def test_the_halves_of_two_versions_are_not_put_together(server, tmp_path):
    path = tmp_path / "data.bin"
    broken_off(server, path)
    server.script = ["other"]
    download(server.url, path)
    assert path.read_bytes() == DATA[::-1]


def test_without_a_tag_or_a_checksum_it_begins_again(server, tmp_path):
    server.tag = 'W/"weak"'
    broken_off(server, tmp_path / "data.bin")
    server.script = ["whole"]
    assert download(server.url, tmp_path / "data.bin").read_bytes() == DATA
    assert server.asked == [None]


def test_a_part_that_is_too_long_is_thrown_away(server, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(DATA + b"more")
    assert download(server.url, tmp_path / "data.bin", sha256=SHA256).read_bytes() == DATA


def test_a_wrong_part_is_noticed_by_the_checksum_and_fetched_anew(server, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(b"?" * 100)
    assert download(server.url, tmp_path / "data.bin", sha256=SHA256).read_bytes() == DATA
    assert server.asked == ["bytes=100-", None]


@pytest.mark.parametrize(
    ("word", "reason", "tries"),
    [
        ("unavailable", "the server says 503", 3),
        ("missing", "the server says 404", 1),
        ("other range", "the server sends bytes from 100 on instead of 0", 3),
        ("wrong", f"what comes has the SHA-256 .* instead of {SHA256}", 2),
    ],
)
def test_what_cannot_be_had_is_to_be_fetched_by_hand(server, tmp_path, word, reason, tries):
    server.script = [word]
    path = tmp_path / "data.bin"
    wanted = (
        rf"{server.url} cannot be downloaded \({reason}.*\); fetch it by hand, put it at {path}"
    )
    with pytest.raises(BadInput, match=wanted):
        download(server.url, path, sha256=SHA256, retries=2)
    assert len(server.asked) == tries and list(tmp_path.iterdir()) == []


def test_no_server_at_all(server, tmp_path):
    url = server.url.replace(str(server.server_port), "1")
    with pytest.raises(
        BadInput, match=r"Connection refused.*put it at .*data.bin, and give the same"
    ):
        download(url, tmp_path / "data.bin", retries=1)


def test_a_file_that_is_there_and_differs_is_named(server, tmp_path):
    path = tmp_path / "data.bin"
    path.write_bytes(DATA[:-1])
    with pytest.raises(BadInput, match=r"data\.bin has 102399 bytes instead of 102400; remove it"):
        download(server.url, path, size=len(DATA))
    with pytest.raises(BadInput, match=f"has the SHA-256 .* instead of {SHA256}; remove it"):
        download(server.url, path, sha256=SHA256)
    assert path.read_bytes() == DATA[:-1] and server.asked == []
    (tmp_path / "folder").mkdir()
    for sha256 in (SHA256, None):
        with pytest.raises(BadInput, match=r"folder is no file; remove it"):
            download(server.url, tmp_path / "folder", sha256=sha256)


def test_a_part_that_is_whole_only_gets_its_name(server, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(DATA)
    (tmp_path / "data.bin.part.etag").write_text(server.tag)
    assert download(server.url, tmp_path / "data.bin", sha256=SHA256).read_bytes() == DATA
    assert server.asked == [] and [p.name for p in tmp_path.iterdir()] == ["data.bin"]


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="file/new cannot be made"):
        download(server.url, tmp_path / "file" / "new" / "data.bin")


@pytest.mark.parametrize("name", ["data.bin.part", "data.bin.part.etag"])
def test_a_full_disk_is_not_tried_again(server, tmp_path, monkeypatch, name):
    (tmp_path / name).symlink_to("/dev/full")
    # The tag of a file before is removed, and this link would be.
    monkeypatch.setattr(module, "_read_tag", lambda part: "")
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    with pytest.raises(
        BadInput, match=r"data\.bin\.part cannot be written: No space left.*make room"
    ):
        download(server.url, tmp_path / "data.bin")
    assert len(server.asked) == 1 and not (tmp_path / "data.bin").exists()
