"""llm.c's model, debug-state, tokenizer and evaluation files, byte for byte."""

import dataclasses
import os

import jax
import ml_dtypes
import numpy as np
import pytest

from llmc_jax.config import BadInput, model_config
from llmc_jax.data.tokenizer import EOT, tokenizer
from llmc_jax.interop import llmc, llmc_text
from llmc_jax.models import gpt2
from llmc_jax.models.initialize import initialize
from tests import golden, tiny

MODEL = dataclasses.replace(tiny.MODEL, L=3)


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), gpt2.shapes(MODEL))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_is_read_as_it_was_written_and_written_as_it_was_read(tmp_path, params, dtype):
    llmc.write_model(tmp_path / "a.bin", MODEL, params, dtype=dtype)
    cfg, read = llmc.read_model(tmp_path / "a.bin")
    assert cfg == MODEL
    for got, wanted in zip(*map(jax.tree.leaves, (read, params)), strict=True):
        assert got.dtype == dtype and np.array_equal(got, wanted.astype(dtype))
    llmc.write_model(tmp_path / "b.bin", cfg, read, dtype=dtype)
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()


def test_the_layout_is_llmcs(tmp_path, params):
    """Header, order and stacking, said again without the reader."""
    llmc.write_model(tmp_path / "a.bin", MODEL, params)
    data = (tmp_path / "a.bin").read_bytes()
    header = np.frombuffer(data[:1024], "<i4")
    sizes = [MODEL.maxT, MODEL.V, MODEL.L, MODEL.NH, MODEL.C, MODEL.Vp]
    assert header.tolist() == [20240326, 3, *sizes] + [0] * 248
    names = "ln1w ln1b qkvw qkvb attprojw attprojb ln2w ln2b fcw fcb fcprojw fcprojb"
    stacked = [np.stack([getattr(block, name) for block in params.block]) for name in names.split()]
    tensors = [params.wte, params.wpe, *stacked, params.lnfw, params.lnfb]
    assert data[1024:] == b"".join(tensor.tobytes() for tensor in tensors)


def test_d12_has_llmcs_sizes_and_initial_numbers(tmp_path):
    """Exported right after initialisation it is what llm.c's own initialisation gives."""
    cfg = model_config("d12")
    sizes = {"bfloat16": 248_952_832, "float32": 497_904_640}
    params = initialize(cfg, 42)
    for dtype, size in sizes.items():
        llmc.write_model(tmp_path / "d12.bin", cfg, params, dtype=dtype, overwrite=True)
        assert os.path.getsize(tmp_path / "d12.bin") == size
    numbers = np.memmap(tmp_path / "d12.bin", "<f4", mode="r", offset=1024)
    begin = 0
    for name, tensor in golden.read("d12_seed42_b4t64")["params_seed42_d12"].items():
        size = int(np.prod(tensor["shape"]))
        values = numbers[begin : begin + size].astype(np.float64)
        np.testing.assert_allclose(values[:8], tensor["first8"], rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(np.linalg.norm(values), tensor["l2"], rtol=1e-6, err_msg=name)
        begin += size
    assert begin == numbers.size


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "is not a model of llm.c"),
        (lambda data: b"\1" + data[1:], "does not begin with 20240326"),
        (lambda data: data[:4] + b"\2" + data[5:], "of version 2; versions 3 and 5"),
        (lambda data: data[:-1], "is truncated: its header promises"),
        (lambda data: data + b"\0", "is too long"),
        (lambda data: data[:20] + b"\5\0\0\0" + data[24:], "impossible sizes"),  # NH = 5
    ],
)
def test_a_broken_model_file_is_named(tmp_path, params, damage, message):
    path = tmp_path / "a.bin"
    llmc.write_model(path, MODEL, params)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadInput, match=message) as error:
        llmc.read_model(path)
    assert str(path) in str(error.value)


def test_a_pipe_is_no_model(tmp_path):
    os.mkfifo(tmp_path / "model.bin")
    with pytest.raises(BadInput, match=r"model\.bin cannot be read: it is a pipe or a device"):
        llmc.read_model(tmp_path / "model.bin")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"none\.bin cannot be read: No such file"):
        llmc.read_model(tmp_path / "none.bin")


def test_an_existing_file_stays_unless_it_may_be_replaced(tmp_path, params):
    path = tmp_path / "a.bin"
    path.write_bytes(b"precious")
    with pytest.raises(BadInput, match="add --overwrite"):
        llmc.write_model(path, MODEL, params)
    assert path.read_bytes() == b"precious"
    llmc.write_model(path, MODEL, params, overwrite=True)
    assert llmc.read_model(path)[0] == MODEL


def test_an_interrupted_write_leaves_nothing(tmp_path, params):
    class Interrupted:
        def __array__(self, *_, **__):
            raise KeyboardInterrupt

    broken = params._replace(lnfb=Interrupted())
    with pytest.raises(KeyboardInterrupt):
        llmc.write_model(tmp_path / "a.bin", MODEL, broken)
    assert not list(tmp_path.iterdir())
    with pytest.raises(BadInput, match="cannot be written: No such file or directory"):
        llmc.write_model(tmp_path / "missing" / "a.bin", MODEL, params)


def test_the_debug_state(tmp_path, params):
    rng = np.random.default_rng(0)
    x = rng.integers(0, MODEL.V, (2, 5)).astype(np.int32)
    logits = rng.normal(size=(2, 5, MODEL.V)).astype(np.float32)
    state = llmc.DebugState(x, x + 1, logits, 1.5, params)
    llmc.write_debug_state(tmp_path / "a.bin", state)
    read = llmc.read_debug_state(tmp_path / "a.bin", MODEL)
    for got, wanted in zip(*map(jax.tree.leaves, (read, state)), strict=True):
        assert np.array_equal(got, wanted)
    llmc.write_debug_state(tmp_path / "b.bin", read)
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()
    parts = 2 * x.size + logits.size + 1 + MODEL.num_parameters
    assert os.path.getsize(tmp_path / "a.bin") == 1024 + 4 * parts
    with pytest.raises(BadInput, match="its header promises"):
        llmc.read_debug_state(tmp_path / "a.bin", tiny.MODEL)


def test_reading_a_model_copies_nothing(tmp_path, params):
    llmc.write_model(tmp_path / "a.bin", MODEL, params)
    _, read = llmc.read_model(tmp_path / "a.bin")
    owners = {id(_owner(leaf)) for leaf in jax.tree.leaves(read)}
    assert len(owners) == 1


def _owner(array):
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.base


def test_bfloat16_is_rounded_to_the_nearest(tmp_path, params):
    halfway = np.float32(1 + 2**-8)  # between 1 and the next bfloat16: to the even one
    llmc.write_model(
        tmp_path / "a.bin", MODEL, params._replace(lnfb=np.full(MODEL.C, halfway)), dtype="bfloat16"
    )
    assert np.all(llmc.read_model(tmp_path / "a.bin")[1].lnfb == ml_dtypes.bfloat16(1))


def test_the_tokenizer(tmp_path):
    tokens = [tokenizer().decode_single_token_bytes(i) for i in range(EOT + 1)]
    llmc_text.write_tokenizer(tmp_path / "a.bin", tokens, EOT)
    assert llmc_text.read_tokenizer(tmp_path / "a.bin") == (tokens, EOT)
    data = (tmp_path / "a.bin").read_bytes()
    assert np.frombuffer(data[:16], "<i4").tolist() == [20240328, 2, 50257, 50256]
    assert data[1024:1027] == b"\1!\1"
    (tmp_path / "a.bin").write_bytes(data[:-1])
    with pytest.raises(BadInput, match="is truncated: it has 50256 of 50257 tokens"):
        llmc_text.read_tokenizer(tmp_path / "a.bin")


EXAMPLES = [
    llmc_text.Example([10, 11, 12], [[1], [2, 3], [4], [5, 6, 7]], 2),
    llmc_text.Example([13], [[8], [9], [10], [11, 12]], 0),
]


def test_an_evaluation_file(tmp_path):
    llmc_text.write_eval(tmp_path / "a.bin", EXAMPLES)
    assert llmc_text.read_eval(tmp_path / "a.bin") == EXAMPLES
    data = np.fromfile(tmp_path / "a.bin", "<u2")
    assert np.fromfile(tmp_path / "a.bin", "<i4")[:4].tolist() == [20240522, 1, 2, 40]
    first = [65535, 40, 0, 2, 4, 3, 10, 11, 12, 1, 1, 2, 2, 3, 1, 4, 3, 5, 6, 7]
    assert data[512:].tolist()[: len(first)] == first


@pytest.mark.parametrize(
    ("number", "value", "message"),
    [
        (512, 7, "truncated or broken at example 0"),
        (515, 4, "example 0 has label 4 of 4"),
        (517, 50, "example 0 has label 2 of 4"),
    ],
)
def test_a_broken_evaluation_file_is_named(tmp_path, number, value, message):
    llmc_text.write_eval(tmp_path / "a.bin", EXAMPLES)
    numbers = np.fromfile(tmp_path / "a.bin", "<u2")
    numbers[number] = value
    numbers.tofile(tmp_path / "a.bin")
    with pytest.raises(BadInput, match=message):
        llmc_text.read_eval(tmp_path / "a.bin")
