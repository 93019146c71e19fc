"""A checkpoint gives back what was saved: values, and the trees they hang in."""

import dataclasses
import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from llmc_jax.models.gpt2 import Block
from llmc_jax.training import arrays, checkpoint, manifest, parallel, placement
from llmc_jax.training.checkpoint import Checkpointer
from llmc_jax.training.step import TrainState, state_shapes
from tests import tiny

MODEL = dataclasses.replace(tiny.MODEL, L=12)  # from ten layers on, names of layers sort oddly


def make_state() -> TrainState:
    """A state whose leaves all differ."""
    shapes = state_shapes(MODEL)
    leaves, tree = jax.tree.flatten(shapes)
    filled = [jnp.full(x.shape, number, x.dtype) for number, x in enumerate(leaves)]
    return placement.replicate(tree.unflatten(filled), parallel.make_mesh())


def assert_equal_trees(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and np.array_equal(x, y)


def test_state_and_parameters_come_back_as_they_were(tmp_path):
    state, run = make_state(), dict(config=dict(model="tiny"), loader=dict(position=7))
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(state, run, 3)
    like = placement.replicated_like(state, parallel.make_mesh())
    with Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.newest() == 3 and checkpoints.steps() == [3]
        assert checkpoints.restore_run(3) == run
        restored = checkpoints.restore_state(3, like)
    with Checkpointer(tmp_path) as checkpoints:
        params = checkpoints.restore_params(3, like.params)
    assert_equal_trees(restored, state)
    assert_equal_trees(params, state.params)
    assert isinstance(restored.m.block[11], Block) and isinstance(params.block[11], Block)


def test_what_was_read_says_nothing_of_what_is_saved_there_next(tmp_path):
    with Checkpointer(tmp_path) as checkpoints:
        for leave in (checkpoints.remove, lambda step: checkpoints.set_aside(step, "later")):
            checkpoints.save(make_state(), {}, 3)
            checkpoints.wait()
            assert checkpoints.problem(3) == ""
            leave(3)
            assert checkpoints.problem(3) == "it is not there"


def test_orbax_alone_reads_what_is_saved(tmp_path):
    """Every array, without this project's code."""
    state = make_state()
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(state, {}, 3)
    restored = ocp.PyTreeCheckpointer().restore(checkpoints.path(3) / "state")
    assert np.array_equal(restored["m"]["block"][11]["fcw"], state.m.block[11].fcw)
    leaves = zip(jax.tree.leaves(restored["params"]), jax.tree.leaves(state.params), strict=True)
    assert all(a.dtype == b.dtype for a, b in leaves)
    assert len(jax.tree.leaves(restored)) == len(jax.tree.leaves(state))


def test_what_orbax_alone_wrote_is_read(tmp_path):
    """As versions before 2026-11-25 saved it: many arrays in a file."""
    state = make_state()
    folder = tmp_path / "00000003"
    with ocp.PyTreeCheckpointer(use_ocdbt=True) as orbax:
        orbax.save(folder / "state", state)
    assert (folder / "state" / "manifest.ocdbt").exists()
    (folder / "run.json").write_text("{}")
    manifest.write(folder, without="unfinished")
    like = placement.replicated_like(state, parallel.make_mesh())
    assert_equal_trees(Checkpointer(tmp_path).restore_state(3, like), state)
    params = Checkpointer(tmp_path).restore_params(3, like.params)
    assert_equal_trees(params, state.params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_checksums_on_the_way_are_those_of_the_files(tmp_path, monkeypatch, dtype):
    """For every type, array shape and length of a last piece; and orbax reads it."""
    monkeypatch.setattr(arrays, "PIECE", 64)
    tree = {str(n): np.arange(n, dtype=jnp.dtype(dtype)) for n in (1, 31, 32, 33, 64, 100)}
    tree |= {"scalar": np.array(7, dtype=jnp.dtype(dtype)), "matrix": tree["100"].reshape(4, 25)}
    files = arrays.ArrayFiles()
    (tmp_path / "tree").mkdir()
    arrays.handler(files).save(tmp_path / "tree", args=ocp.args.PyTreeSave(tree))
    assert len(files.written) == 2 * len(tree)
    assert all(manifest._measure(path) == known for path, known in files.written.items())
    assert_equal_trees(ocp.PyTreeCheckpointer().restore(tmp_path / "tree"), tree)


def pointers(tree) -> set[int]:
    return {x.addressable_data(0).unsafe_buffer_pointer() for x in jax.tree.leaves(tree)}


def test_a_restored_state_may_be_written_over(tmp_path):
    """By a step that is given it, more than once."""
    state = make_state()
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(state, {}, 3)
    like = placement.replicated_like(state, parallel.make_mesh())
    step = jax.jit(lambda x: jax.tree.map(lambda leaf: leaf + 1, x), donate_argnums=0)
    restored = checkpoints.restore_state(3, like)
    before = pointers(restored)
    stepped = step(restored)
    assert pointers(stepped) == before
    assert_equal_trees(step(stepped), jax.tree.map(lambda leaf: leaf + 2, state))


def test_saved_is_said_when_the_mark_of_an_unfinished_one_is_gone_from_the_disk(
    tmp_path, monkeypatch
):
    """After a power loss it would be there again, and the checkpoint be removed for it."""
    marked, sync = [], checkpoint.sync

    def syncing(path):
        if path == tmp_path / "00000003":
            marked.append((path / "unfinished").exists())
        sync(path)

    monkeypatch.setattr(checkpoint, "sync", syncing)
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(make_state(), {}, 3)
    assert marked and not marked[-1]


def test_what_a_killed_removal_leaves_is_removed_by_the_next_start(tmp_path, monkeypatch):
    """Wherever it was: the mark that tells goes last."""

    class Killed(BaseException):
        pass

    def fill(folder):
        (folder / "state" / "d").mkdir(parents=True)
        for name in ("a", "run.json", "state/b", "state/d/c", "z"):
            (folder / name).touch()

    def die_at(call):
        count = itertools.count()

        def dying(function):
            def changed(*args, **kwargs):
                if next(count) == call:
                    raise Killed
                return function(*args, **kwargs)

            return changed

        patch = pytest.MonkeyPatch()
        patch.setattr(os, "unlink", dying(os.unlink))
        patch.setattr(os, "rmdir", dying(os.rmdir))
        return patch

    for call in range(9):  # six files, three folders
        fill(tmp_path / "00000003")
        patch = die_at(call)
        with pytest.raises(Killed):
            Checkpointer(tmp_path).remove(3)
        patch.undo()
        assert (tmp_path / "00000003").exists()
        Checkpointer(tmp_path).remove_unfinished()
        assert not (tmp_path / "00000003").exists()


def test_who_reads_while_a_checkpoint_is_removed_finds_it_gone(tmp_path, monkeypatch):
    """Which another process does, or the thread that could not write it: that tells its failure
    when it has removed it."""
    assert checkpoint._is_unfinished(tmp_path / "00000003")
    with Checkpointer(tmp_path) as checkpoints:
        told = []
        remove = checkpoint._remove
        monkeypatch.setattr(
            checkpoint, "_remove", lambda _: [told.append(checkpoints.take_failure()), remove(_)]
        )
        monkeypatch.setattr(checkpoint, "_claim_space", lambda *_: 1 / 0)
        checkpoints.save(make_state(), {}, 3)
        checkpoints.wait()
        assert told == [None] and checkpoints.take_failure().step == 3
    assert not checkpoints.path(3).exists()


def test_a_save_removes_only_what_it_made(tmp_path):
    """A checkpoint that is there already stays, and the failure says so."""
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(make_state(), dict(first=True), 3)
        checkpoints.save(make_state(), {}, 3)
        checkpoints.wait()
        failure = checkpoints.take_failure()
    assert failure.step == 3 and failure.reason.startswith("File exists (")
    assert Checkpointer(tmp_path).restore_run(3) == dict(first=True)
