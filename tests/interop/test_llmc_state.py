"""Optimizer states of llm.c, written here as its save_state does, one file a rank."""

import jax
import numpy as np
import pytest

from llmc_jax.config import BadInput
from llmc_jax.interop import llmc, llmc_state
from llmc_jax.models import gpt2
from tests import tiny

MODEL = tiny.MODEL
STEP = 12


def random_params(seed: int):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), gpt2.shapes(MODEL))


def rank_slice(params, rank: int, ranks: int) -> bytes:
    """What ZeRO stage 1 keeps on a rank: its slice of each tensor of each layer."""
    tensors = llmc.in_file_order(params)
    return b"".join(np.split(tensor.reshape(-1), ranks)[rank].tobytes() for tensor in tensors)


def write_run(folder, trees, *, ranks=1, sharded=False, shuffled=True, master=True, place=(2, 7)):
    """An output directory of llm.c with m, v and perhaps master weights, of step STEP.

    place: shard and sample.
    """
    llmc.write_model(folder / f"model_{STEP:08d}.bin", MODEL, trees[2], dtype="bfloat16")
    for rank in range(ranks):
        header = np.zeros(256, "<i4")
        header[:6] = 20240527, 1, ranks, rank, master, shuffled
        header[10] = STEP
        header[30:34].view("<u8")[:] = place
        body = b"".join(
            rank_slice(tree, rank, ranks) if sharded else rank_slice(tree, 0, 1)
            for tree in (trees if master else trees[:2])
        )
        if shuffled:
            for count in (3, 40):  # the order of shards, and of the samples of one
                body += np.uint64(count).tobytes() + np.arange(count, dtype="<i4").tobytes()
            body += bytes(2520)
        (folder / f"state_{STEP:08d}_{rank:05d}.bin").write_bytes(header.tobytes() + body)
    (folder / f"DONE_{STEP:08d}").touch()


@pytest.fixture
def trees():
    return [random_params(seed) for seed in range(3)]


@pytest.mark.parametrize("shuffled", [True, False])
@pytest.mark.parametrize(("ranks", "sharded"), [(1, False), (2, False), (2, True), (8, True)])
def test_the_files_of_all_ranks_are_merged(tmp_path, trees, ranks, sharded, shuffled):
    write_run(tmp_path, trees, ranks=ranks, sharded=sharded, shuffled=shuffled)
    run = llmc_state.read_run(tmp_path)
    assert (run.model, run.step, run.dtype) == (MODEL, STEP, "bfloat16")
    assert (run.place, run.shuffled) == (llmc_state.LoaderPlace(2, 7), shuffled)
    assert run.ranks == ranks
    for got, wanted in zip((run.m, run.v, run.params), trees, strict=True):
        for a, b in zip(*map(jax.tree.leaves, (got, wanted)), strict=True):
            assert np.array_equal(a, b)


def test_without_master_weights_the_models_are_taken(tmp_path, trees):
    write_run(tmp_path, trees, master=False)
    run = llmc_state.read_run(tmp_path)
    assert run.params.wte.dtype.name == "bfloat16"
    assert np.array_equal(run.params.wte, trees[2].wte.astype(run.params.wte.dtype))


def test_what_is_missing_or_broken_is_named(tmp_path, trees):
    (tmp_path / "DONE_abcdefgh").touch()
    assert not llmc_state.is_llmc_run(tmp_path)
    write_run(tmp_path, trees, ranks=2, sharded=True)
    assert llmc_state.is_llmc_run(tmp_path)
    with pytest.raises(BadInput, match=f"--step=13 was not saved; .* has {STEP}"):
        llmc_state.read_run(tmp_path, 13)
    second = tmp_path / f"state_{STEP:08d}_00001.bin"
    whole = second.read_bytes()
    second.write_bytes(whole[:-1])
    with pytest.raises(BadInput, match=r"00001\.bin is truncated or not of the model"):
        llmc_state.read_run(tmp_path)
    second.write_bytes((tmp_path / f"state_{STEP:08d}_00000.bin").read_bytes())
    with pytest.raises(BadInput, match="is of rank 0 of 2, expected rank 1 of 2"):
        llmc_state.read_run(tmp_path)
    second.unlink()
    with pytest.raises(BadInput, match=r"00001\.bin cannot be read: No such file"):
        llmc_state.read_run(tmp_path)
    first = tmp_path / f"state_{STEP:08d}_00000.bin"
    data = bytearray(first.read_bytes())
    data[8:12] = bytes(4)
    first.write_bytes(data)
    with pytest.raises(BadInput, match=r"00000\.bin says that 0 processes wrote it"):
        llmc_state.read_run(tmp_path)


def test_a_state_of_another_model_is_named(tmp_path, trees):
    """What lies where its tensors would end is no size, but may be read as one."""
    write_run(tmp_path, [jax.tree.map(lambda x: np.full_like(x, -1e30), tree) for tree in trees])
    path = tmp_path / f"state_{STEP:08d}_00000.bin"
    data = path.read_bytes()
    path.write_bytes(data + b"\xff" * 64)
    with pytest.raises(BadInput, match="is truncated or not of the model beside it"):
        llmc_state.read_run(tmp_path)
    header = bytearray(data)
    header[16:20] = bytes(4)  # it says that there are no master weights
    path.write_bytes(header)
    with pytest.raises(BadInput, match="is truncated or not of the model beside it"):
        llmc_state.read_run(tmp_path)
