"""The native path: what loads, what is refused, and that handlers neither crash nor hang."""

import ctypes
import hashlib
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llmc_jax
from llmc_jax import ffi, ops
from llmc_jax.config import BadInput
from llmc_jax.ops import layernorm


def library_path() -> Path:
    paths = [Path(folder) / "libllmc_cpu.so" for folder in llmc_jax.__path__]
    return next(path for path in paths if path.exists())


def test_the_library_says_what_it_was_built_with():
    assert ctypes.CDLL(str(library_path())).llmc_ffi_api_version() <= ffi._installed_api_version()


def test_a_library_for_a_newer_ffi_is_refused_before_it_is_registered(monkeypatch):
    monkeypatch.setattr(ffi, "_installed_api_version", lambda: 0)
    monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda *_, **__: pytest.fail("registered"))
    reason, _ = ffi.register(library_path(), ffi.LIBRARIES["cpu"])
    assert "speaks 0.0" in reason and ffi.REBUILD in reason


def test_a_library_without_all_handlers_is_refused_before_any_is_registered(monkeypatch):
    monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda *_, **__: pytest.fail("registered"))
    newer = ffi.LIBRARIES["cpu"]._replace(handlers=("llmc_adamw", "llmc_new_forward"))
    reason, _ = ffi.register(library_path(), newer)
    assert "lacks llmc_new_forward (rebuild it:" in reason


def test_a_library_of_another_commit_is_refused_before_it_is_registered(monkeypatch):
    monkeypatch.setattr(ffi, "INTERFACE", ffi.INTERFACE + 1)
    monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda *_, **__: pytest.fail("registered"))
    reason, _ = ffi.register(library_path(), ffi.LIBRARIES["cpu"])
    assert reason == f"libllmc_cpu.so was built from another commit (rebuild it: {ffi.REBUILD})"


def test_the_interface_has_a_new_number_when_a_handler_changes():
    """Where this fails, raise ffi.INTERFACE and llmc_interface() in ffi/common/version.cc, and
    write the number and what the assertion shows here."""
    bindings = []
    for path in sorted((Path(__file__).parents[1] / "ffi").glob("c*/*.cc")):
        bindings += re.findall(r"_HANDLER(?:_SYMBOL)?\((\w+,.*?)\);", path.read_text(), re.DOTALL)
    assert len(bindings) == len(ffi.CPU_HANDLERS) + len(ffi.CUDA_HANDLERS)
    digest = hashlib.sha256("".join("".join(bindings).split()).encode()).hexdigest()[:16]
    assert (ffi.INTERFACE, digest) == (5, "cfb07665d6013a09")


def test_a_file_that_is_no_library_is_refused(tmp_path):
    (tmp_path / "libllmc_cpu.so").write_text("not a library")
    reason, library = ffi.register(tmp_path / "libllmc_cpu.so", ffi.LIBRARIES["cpu"])
    assert "cannot be loaded" in reason and library is None


def test_without_a_library_auto_is_jnp_and_a_named_kernel_is_an_error(monkeypatch):
    def missing(library):
        return f"{ffi.LIBRARIES[library].file} was not built", None

    monkeypatch.setattr(ffi, "_load", missing)
    assert set(ops.select("auto", "cpu")[1].values()) == {"jnp"}
    with pytest.raises(BadInput, match=r"libllmc_cpu\.so was not built"):
        ops.select("attention=ffi", "cpu")
    assert set(ops.select("auto", "gpu")[1].values()) == {"jnp"}
    with pytest.raises(BadInput, match=r"asks for cuda, but libllmc_cuda\.so was not built"):
        ops.select("global_norm=cuda", "gpu")


def test_select_reads_words_from_left_to_right():
    _, names = ops.select("jnp,attention=ffi", "cpu")
    assert names["attention"] == "ffi" and names["layernorm"] == "jnp"
    _, names = ops.select("attention=jnp,ffi,matmul=jnp", "cpu")
    assert names["attention"] == "ffi" and names["matmul"] == "jnp"
    _, names = ops.select("auto", "cpu")
    assert {op for op, name in names.items() if name == "ffi"} == set(ops.DEFAULTS["cpu"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("foo", "no op has an implementation 'foo'"),
        ("attention=cuda", r"has no implementation 'cuda' on this platform \(cpu\)"),
        ("attn=ffi", "there is no op 'attn'; the ops are encoder"),
        ("attention=", "attention has no implementation ''"),
    ],
)
def test_a_choice_that_does_not_exist_lists_what_does(spec, message):
    with pytest.raises(BadInput, match=message):
        ops.select(spec, "cpu")


def test_an_instruction_set_the_machine_lacks_is_refused_with_those_it_has(use_isa):
    with pytest.raises(BadInput, match=r"--cpu_isa=sse9: this machine has .*portable"):
        use_isa("sse9")
    use_isa("portable")
    assert ffi.status("cpu").endswith("loaded, portable")


def test_the_chosen_kernel_is_what_runs():
    """The compiled program calls the handler by its name, and only where it was chosen."""
    x, w = jnp.ones((1, 4, 8)), jnp.ones(8)

    def program(name):
        forward = partial(ops.TABLE["layernorm"][name].forward, eps=1e-5)
        return jax.jit(forward).lower(x, w, w).compile().as_text()

    assert "llmc_layernorm_forward" in program("ffi")
    assert "llmc_layernorm_forward" not in program("jnp")


def test_many_calls_at_once_do_not_wait_for_each_other():
    """Sixteen independent handlers that each use the pool: a blocking wait would hang here."""
    forward = partial(ops.TABLE["layernorm"]["ffi"].forward, eps=1e-5)
    rng = np.random.default_rng(0)
    inputs = [jnp.asarray(rng.normal(size=(8, 64, 32)), jnp.float32) for _ in range(16)]
    weight, bias = jnp.ones(32), jnp.zeros(32)

    @jax.jit
    def all_at_once(inputs):
        return [forward(x, weight, bias)[0] for x in inputs]

    for _ in range(20):
        results = all_at_once(inputs)
    for x, result in zip(inputs, results, strict=True):
        expected, _ = layernorm.forward(x, weight, bias, eps=1e-5)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("target", "results", "args", "static", "message"),
    [
        (
            "llmc_layernorm_forward",
            [((2, 3, 8), "f4"), ((2, 3), "f4"), ((2, 3), "f4")],
            [np.ones((2, 3, 8), "f4"), np.ones(7, "f4"), np.ones(7, "f4")],
            dict(eps=1e-5),
            r"weight is \(7\), expected \(8\)",
        ),
        (
            "llmc_attention_forward",
            [((1, 4, 8), "f4"), ((1, 3, 4), "f4")],
            [np.ones((1, 4, 24), "f4")],
            dict(NH=3),
            r"qkv is \(1,4,24\) with 3 heads",
        ),
        (
            "llmc_attention_forward",
            [((1, 4, 8), "i4"), ((1, 2, 4), "f4")],
            [np.ones((1, 4, 24), "i4")],
            dict(NH=2),
            "expected float32 or bfloat16",
        ),
        (
            "llmc_matmul_forward",
            [((1, 4, 8), "f4")],
            [np.ones((1, 4, 6), "f4"), np.ones((8, 5), "f4"), np.ones(8, "f4")],
            {},
            r"weight is \(8,5\), expected \(8,6\)",
        ),
        (
            "llmc_mlp_forward",
            [((1, 4, 6), "f4"), ((1, 4, 8), "f4"), ((1, 4, 8), "f4")],
            [
                np.ones((1, 4, 6), "f4"),
                np.ones((8, 6), "f4"),
                np.ones(8, "f4"),
                np.ones((6, 9), "f4"),
                np.ones(6, "f4"),
            ],
            {},
            r"fcprojw is \(6,9\), expected \(6,8\)",
        ),
        (
            "llmc_encoder_forward",
            [((1, 2, 4), "f4")],
            [np.array([[1, 9]], "i4"), np.ones((8, 4), "f4"), np.ones((2, 4), "f4")],
            {},
            "token 9 at 1 is not below Vp = 8",
        ),
        (
            "llmc_classifier_losses",
            [((1, 2), "f4")],
            [np.ones((1, 2, 4), "f4"), np.ones((8, 4), "f4"), np.array([[1, 6]], "i4")],
            dict(V=6),
            "target 6 of row 1 is not below V = 6",
        ),
        (
            "llmc_classifier_forward",
            [((1, 2), "f4"), ((1, 2, 4), "f4"), ((8, 4), "f4"), ((2, 7), "f4")],
            [
                np.ones((1, 2, 4), "f4"),
                np.ones((8, 4), "f4"),
                np.array([[1, 5]], "i4"),
                np.ones((1, 2), "f4"),
            ],
            dict(V=6),
            r"powers is \(2,7\), expected \(2,8\)",
        ),
        (
            "llmc_classifier_forward",
            [((1, 2), "f4"), ((1, 2, 4), "f4"), ((6, 4), "f4"), ((2, 8), "f4")],
            [
                np.ones((1, 2, 4), "f4"),
                np.ones((8, 4), "f4"),
                np.array([[1, 5]], "i4"),
                np.ones((1, 2), "f4"),
            ],
            dict(V=6),
            r"dwte is \(6,4\), expected \(8,4\)",
        ),
        (
            "llmc_attention_backward",
            [((1, 2, 11), "f4")],
            [
                np.ones((1, 2, 4), "f4"),
                np.ones((1, 1, 2), "f4"),
                np.ones((1, 2, 4), "f4"),
                np.ones((1, 2, 12), "f4"),
            ],
            dict(NH=1),
            r"dqkv is \(1,2,11\), expected \(1,2,12\)",
        ),
        (
            "llmc_matmul_backward",
            [((1, 4, 6), jnp.bfloat16), ((8, 6), "f4"), ((8,), "f4")],
            [
                np.ones((1, 4, 8), "f4"),
                np.ones((1, 4, 6), "f4"),
                np.ones((8, 6), "f4"),
                np.ones(8, "f4"),
            ],
            {},
            "dinp is bfloat16, expected float32",
        ),
        (
            "llmc_matmul_backward",
            [((1, 4, 6), "f4"), ((8, 6), jnp.bfloat16), ((8,), "f4")],
            [
                np.ones((1, 4, 8), "f4"),
                np.ones((1, 4, 6), "f4"),
                np.ones((8, 6), "f4"),
                np.ones(8, "f4"),
            ],
            {},
            "dweight is bfloat16, expected float32",
        ),
        (
            "llmc_global_norm",
            [((), "f4")],
            [np.ones(3, "f4"), np.ones(3, "i4")],
            dict(arrays=(1, 1)),
            "gradient of leaf 1 is .*, expected float32 or bfloat16",
        ),
        (
            "llmc_global_norm",
            [((), "f4")],
            [np.ones(3, "f4"), np.ones((1, 5, 7), "f4"), np.ones((1, 6, 8), "f4")],
            dict(arrays=(1, 2)),
            "gradient of leaf 1: its factors have 5 and 6 rows, expected as many",
        ),
        (
            "llmc_global_norm",
            [((), "f4")],
            [np.ones((5, 7), "f4"), np.ones((5, 8), "f4")],
            dict(arrays=(2,)),
            r"gradient of leaf 0 is \(5,7\), expected 3 dimensions, none of them 0",
        ),
        (
            "llmc_global_norm",
            [((), "f4")],
            [np.ones((1, 5, 7), "f4"), np.ones((1, 5, 8), jnp.bfloat16)],
            dict(arrays=(2,)),
            "gradient of leaf 0, its second factor, is bfloat16, expected float32",
        ),
        (
            "llmc_global_norm",
            [((), "f4")],
            [np.ones(3, "f4"), np.ones(3, "f4")],
            dict(arrays=(1, 2)),
            "2 arrays, expected 3 of the gradients",
        ),
        (
            "llmc_global_norm",
            [((), "f4")],
            [np.ones((1, 5, 7), "f4")] * 3,
            dict(arrays=(3,)),
            "gradient of leaf 0: 3 arrays, expected 1, or 2 factors",
        ),
        (
            "llmc_global_norm",
            [((2,), "f4")],
            [np.ones(3, "f4")],
            dict(arrays=(1,)),
            r"norm is \(2\), expected \(\)",
        ),
        (
            "llmc_adamw",
            [((3,), "f4")] * 3,
            [np.ones(0, "f4"), np.float32(1), np.int32(1), *[np.ones(3, "f4")] * 4],
            dict(weight_decay=(0.1,), arrays=(1,), beta1=0.9, beta2=0.95, eps=1e-8),
            r"lr is \(0\), expected \(\)",
        ),
    ],
)
def test_a_kernel_refuses_what_it_cannot_take(target, results, args, static, message):
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in results]
    with pytest.raises(jax.errors.JaxRuntimeError, match=message) as error:
        jax.block_until_ready(ffi.call(target, shapes)(*args, **static))
    assert "INVALID_ARGUMENT" in str(error.value) and target in str(error.value)
