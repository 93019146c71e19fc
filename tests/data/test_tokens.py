"""Shards are llm.c's, byte for byte, and a broken one is refused by name."""

import os
import resource
import struct

import numpy as np
import pytest

from llmc_jax.config import BadInput
from llmc_jax.data import tokens
from llmc_jax.data.loader import TokenLoader
from llmc_jax.data.tokens import find_shards, read_shard, read_shards, write_shard


def test_a_shard_is_llm_cs_header_and_uint16(tmp_path):
    write_shard(tmp_path / "a.bin", np.array([1, 50256, 7]))
    header = struct.pack("<256i", 20240520, 1, 3, *[0] * 253)
    assert (tmp_path / "a.bin").read_bytes() == header + struct.pack("<3H", 1, 50256, 7)
    assert read_shard(tmp_path / "a.bin").tolist() == [1, 50256, 7]
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]  # nothing temporary is left


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (struct.pack("<256i", 20240520, 1, 3, *[0] * 253) + b"\0" * 4, "truncated"),
        (struct.pack("<256i", 20240520, 1, 3, *[0] * 253) + b"\0" * 8, "too long"),
        (struct.pack("<256i", 20240521, 1, 3, *[0] * 253) + b"\0" * 6, "not a token shard"),
        (struct.pack("<256i", 20240520, 7, 3, *[0] * 253) + b"\0" * 6, "not a token shard"),
        (b"too short", "not a token shard"),
        (b"", "not a token shard"),
    ],
)
def test_a_broken_shard_is_named(tmp_path, content, message):
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(BadInput, match=message) as error:
        read_shard(tmp_path / "a.bin")
    assert str(tmp_path / "a.bin") in str(error.value)


def test_what_is_no_file_is_named(tmp_path):
    """A pipe would be waited for without end."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match="pipe cannot be read: it is a pipe or a device; name a fi"):
        read_shard(tmp_path / "pipe")
    with pytest.raises(BadInput, match="cannot be read: Is a directory"):
        read_shard(tmp_path)


def test_globs_are_sorted_and_must_match(tmp_path):
    for name in ("b.bin", "a.bin"):
        write_shard(tmp_path / name, np.zeros(4))
    assert find_shards("train_data", f"{tmp_path}/*.bin") == [
        f"{tmp_path}/a.bin", f"{tmp_path}/b.bin",
    ]  # fmt: skip
    with pytest.raises(BadInput, match=r"--train_data=.*matches no file"):
        find_shards("train_data", f"{tmp_path}/*.txt")


def test_tokens_of_32_bits(tmp_path):
    large = np.array([0, 65536, 128255])
    write_shard(tmp_path / "a.bin", large, dtype="uint32")
    assert np.array_equal(read_shard(tmp_path / "a.bin"), large)
    header = np.fromfile(tmp_path / "a.bin", "<i4", count=4)
    assert header.tolist() == [20240801, 7, 3, 0]


@pytest.fixture
def few_files():
    """The number of the last file that this process may have open; a little above now's."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(int(name) for name in os.listdir("/proc/self/fd")) + 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_more_shards_than_files_may_be_open(tmp_path, few_files):
    """The limit is raised where that may be; else it is named."""
    write_shard(tmp_path / "a.bin", np.arange(4))
    paths = [f"{tmp_path}/a.bin"] * (few_files + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "_allow_files", lambda count: None)
        message = f"--val_data names {len(paths)} shards, and this .* {few_files} files open; raise"
        with pytest.raises(BadInput, match=message):
            read_shards("val_data", paths)
    assert [shard.tolist() for shard in read_shards("val_data", paths)] == [[0, 1, 2, 3]] * len(
        paths
    )


def test_a_shard_of_more_than_2_gib(tmp_path):
    """Its last tokens are where they should be; the file has holes, so it takes no room."""
    T = 101
    count = 2**30 // T * T + T + 1
    write_shard(tmp_path / "a.bin", np.zeros(0))
    with open(tmp_path / "a.bin", "r+b") as file:
        file.seek(8)
        file.write(np.int32(count).tobytes())
        file.seek(1024 + 2 * (count - 1))
        file.write(np.uint16(7).tobytes())
    shard = read_shard(tmp_path / "a.bin")
    assert len(shard) == count and shard[-1] == 7 and shard[-2] == 0
    loader = TokenLoader("train_data", f"{tmp_path}/a.bin", T=T, V=8)
    _, targets = loader.read(loader.num_sequences - 1, 1)
    assert targets[0].tolist() == [0] * (T - 1) + [7]
