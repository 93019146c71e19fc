"""The plan of a step's memory: against XLA's own plan of the compiled step, and llm.c's formula."""

import dataclasses
import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from llmc_jax import machine, ops
from llmc_jax.config import ModelConfig, TrainConfig, model_config
from llmc_jax.models import gpt2
from llmc_jax.ops.op import size
from llmc_jax.training import liveness, memory, parallel, placement
from llmc_jax.training.initial_state import state_like
from llmc_jax.training.rooms import placed_rooms_like
from tests import quick, tiny

SMALL = ModelConfig(L=2, NH=4, C=128, maxT=256, V=1000, Vp=1024)


def config(B: int, T: int, A: int = 1, **options) -> TrainConfig:
    steps = dict(max_steps=10, schedule_steps=10)
    return TrainConfig(
        batch_size=B, sequence_length=T, total_batch_size=A * B * T, **steps, **options
    )


def by_xla(chosen, model, cfg) -> int:
    return memory.planned_bytes(compiled(chosen, model, cfg))


def compiled(chosen, model, cfg):
    """The step compiled, for its plan."""
    mesh = parallel.make_mesh()
    rows = cfg.batch_size * mesh.size
    shape = (cfg.total_batch_size // (rows * cfg.sequence_length), rows, cfg.sequence_length)
    batch = placement.micro_batches_like(shape, mesh)
    mapped = parallel.map_train_step(chosen, model, cfg, mesh)
    rooms = placed_rooms_like(chosen, model, cfg, mesh)
    step = mapped.lower(state_like(model, cfg, mesh), rooms, batch, batch)
    return step.compile(compiler_options=quick.OPTIONS)


@pytest.mark.parametrize(
    ("model", "spec", "cfg", "within"),
    [
        (SMALL, "ffi", config(4, 256, recompute=0), 0.01),
        (SMALL, "ffi", config(4, 256, dtype="bfloat16", recompute=3), 0.01),
        (SMALL, "ffi", config(4, 256, recompute=4), 0.01),
        (SMALL, "jnp", config(4, 256, dtype="bfloat16", recompute=0), 0.05),
        (SMALL, "jnp", config(4, 32, A=2, recompute=1), 0.05),
        (SMALL, "ffi,classifier=chunked", config(2, 128, A=2), 0.1),
        (SMALL, "ffi", config(1, 32), 0.01),  # activations lie in the gradients' memory
        (SMALL, "ffi", config(1, 32, recompute=2), 0.01),  # gradients are in their factors
        (model_config("d6"), "ffi", config(4, 256, A=3, dtype="bfloat16"), 0.01),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_the_total_is_what_xla_plans(model, spec, cfg, within):
    chosen, _ = ops.select(spec, "cpu")
    planned = memory.step_memory(chosen, model, cfg, "cpu")
    assert planned.total == pytest.approx(by_xla(chosen, model, cfg), rel=within)
    P = 4 * model.num_parameters
    assert (planned.parameters, planned.moments) == (P, 2 * P)
    assert planned.kept <= planned.total


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_of_few_tokens_need_not_hold_the_gradients_of_layers(dtype):
    """Those in factors are a quarter of them here: 64 tokens with 384 channels."""
    chosen, model = ops.select("ffi", "cpu")[0], model_config("d6")
    whole, factors = (
        by_xla(chosen, model, config(1, 64, dtype=dtype, recompute=level)) for level in (1, 2)
    )
    of_layers = size(gpt2.gradient_shapes(model, jnp.dtype(dtype)).block)
    assert whole - factors > 0.7 * of_layers


ON_EIGHT = """
import jax
jax.config.update("jax_num_cpu_devices", 8)
from llmc_jax import ops
from llmc_jax.training import memory
from tests.training.test_memory import SMALL, by_xla, config
chosen, _ = ops.select("ffi", "cpu")
for stage in (0, 2):
    cfg = config(2, 32, A=8, dtype="bfloat16", zero_stage=stage)
    told = memory.step_memory(chosen, SMALL, cfg, "cpu", 8).total
    print(told / by_xla(chosen, SMALL, cfg))
"""


def test_the_total_on_several_devices_is_not_far_below_xlas():
    """In a process of its own, which has them: the sum of the gradients takes all of them twice."""
    env = os.environ | dict(JAX_PLATFORMS="cpu")
    command = [sys.executable, "-c", ON_EIGHT]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    whole, in_parts = map(float, done.stdout.split())
    assert whole == pytest.approx(1, abs=0.02) and 0.9 < in_parts < 1.1


def test_the_plan_is_the_same_each_time():
    """Of a step with jnp, where many buffers are equally large."""
    chosen, cfg = ops.select("jnp", "cpu")[0], config(8, 32, recompute=3)
    model = dataclasses.replace(tiny.MODEL, L=4)
    told = {memory.step_memory(chosen, model, cfg, "cpu", 1).total for _ in range(4)}
    assert len(told) == 1


def test_a_step_for_tpus_is_planned_without_them():
    """JAX's own kernels there do not say of their results what differs from device to device."""
    chosen, names = ops.select("auto", "tpu", 64, here=False)
    model, cfg = dataclasses.replace(SMALL, NH=2), config(1, 256, A=4)
    assert names["attention"] == "pallas"
    planned = memory.step_memory(chosen, model, cfg, "tpu", 4)
    assert planned.total > planned.kept > 3 * planned.parameters


@pytest.mark.parametrize("recompute", [0, 1, 2])
@pytest.mark.parametrize("name", ["d12", "d24", "d48"])
def test_activations_are_what_llm_c_counts(name, recompute):
    """Bytes of a token in bfloat16, flash attention, by its fill_in_activation_sizes: the layers'
    are the same. Outside of them it has buffers for encoded, the MLP's hidden gradient and another
    gradient (12 C), for fch_gelu where that is not kept (8 C), and for the losses (4), and we have
    residual3 apart (2 C)."""
    model, tokens = model_config(name), 2 * 1024
    chosen, _ = ops.select("jnp", "cpu")
    cfg = config(2, 1024, dtype="bfloat16", recompute=recompute)
    kept = memory.activations(chosen, model, cfg)
    L, C, NH, Vp = model.L, model.C, model.NH, model.Vp
    llmc = 24 * L * C + L * (16 + 4 * NH) + 2 * max(3 * C, NH * 1024, Vp) + 22 * C + 12
    llmc += {0: 8 * C * (L - 1), 1: 0, 2: -4 * L * C}[recompute]
    assert llmc - sum(kept.values()) / tokens == {0: 10, 1: 18, 2: 18}[recompute] * C + 4
    outside = ("residual3", "lnf", "lnf_stats", "classifier")
    layers = sum(bytes for tensor, bytes in kept.items() if tensor not in outside)
    assert layers / tokens == L * (C * {0: 32, 1: 24, 2: 20}[recompute] + 16 + 4 * NH)


def test_zero_splits_what_its_stage_says():
    """The state by the stage. Gradients are whole where there is one micro-batch, as nothing is
    accumulated: then stage 2 saves nothing more."""
    chosen, _ = ops.select("jnp", "cpu")
    model = dataclasses.replace(SMALL, L=1)
    P = 4 * model.num_parameters

    def stages(A: int) -> list[memory.Memory]:
        cfgs = [config(1, 32, A=A, zero_stage=stage) for stage in range(4)]
        return [memory.step_memory(chosen, model, cfg, "cpu", 4) for cfg in cfgs]

    whole = stages(A=4)
    assert [m[:2] for m in whole] == [(P, 2 * P), (P, P // 2), (P, P // 2), (P // 4, P // 2)]
    assert whole[0].total > whole[1].total == whole[2].total > whole[3].total
    accumulated = stages(A=8)
    assert accumulated[2].total < accumulated[1].total - P / 2
    alone = memory.step_memory(chosen, model, config(1, 32, zero_stage=3), "cpu", 1)
    assert alone[:2] == (P, 2 * P)


def test_what_would_fit_really_fits_and_is_the_largest(monkeypatch):
    # which plans the same steps for each question
    monkeypatch.setattr(memory, "step_memory", functools.cache(memory.step_memory))
    chosen, _ = ops.select("ffi", "cpu")
    cfg = config(4, 32, recompute=1)

    def bytes_of(B, recompute):
        less = dataclasses.replace(cfg, batch_size=B, recompute=recompute)
        return memory.step_memory(chosen, tiny.MODEL, less, "cpu", 1).total

    told = memory.what_would_fit(chosen, tiny.MODEL, cfg, "cpu", 1, bytes_of(4, 1) - 1)
    assert told.startswith("--batch_size=4 --recompute=") and told.endswith("and fit")
    told = memory.what_would_fit(chosen, tiny.MODEL, cfg, "cpu", 1, bytes_of(2, 3))
    assert told.startswith("--batch_size=2 --recompute=") and "--total_batch_size=128" in told
    told = memory.what_would_fit(chosen, tiny.MODEL, cfg, "cpu", 1, 1000)
    assert told.startswith("--batch_size=1 --recompute=4 would take") and "smaller --model" in told


def test_the_smallest_step_that_does_not_fit_and_a_huge_one_get_a_sentence(monkeypatch):
    """In few plans, each of which takes seconds for a large model."""
    calls = []

    def step_memory(ops, model, cfg, platform, devices):
        calls.append(cfg)
        return memory.Memory(0, 0, 0, {}, cfg.batch_size * (10 - cfg.recompute), "")

    monkeypatch.setattr(memory, "step_memory", step_memory)

    def told(B, limit, recompute=4):
        cfg = config(B, 32, recompute=recompute)
        return memory.what_would_fit(None, None, cfg, "cpu", 1, limit)

    assert told(1, 6).startswith("--batch_size=1 --recompute=4 would take 0 MiB: take a smaller")
    calls.clear()
    assert told(999_999_999_999, 99).startswith("--batch_size=13 --recompute=3 --total_batch")
    assert len(calls) < 30
    # the last level only where no micro-batch fits without it
    assert told(12, 41).startswith("--batch_size=4 --recompute=0 --total_batch_size=384 would take")
    assert told(12, 6).startswith("--batch_size=1 --recompute=4 --total_batch_size=384 would take")
    assert told(1, 6, recompute=3).startswith("--batch_size=1 --recompute=4 would take")


def test_a_whole_step_is_tried_though_parts_of_it_take_more(monkeypatch):
    """What is added up needs memory of its own: of one micro-batch two halves may be more."""
    sizes = {4: 2555, 2: 2588, 1: 2366}
    less = [0, 0, 144, 432, 689]

    def step_memory(ops, model, cfg, platform, devices):
        saved = less[cfg.recompute] * cfg.batch_size // 4
        return memory.Memory(0, 0, 0, {}, sizes[cfg.batch_size] - saved << 20, "")

    monkeypatch.setattr(memory, "step_memory", step_memory)

    def told(limit, recompute=0):
        cfg = config(4, 32, recompute=recompute)
        return memory.what_would_fit(None, None, cfg, "cpu", 1, limit << 20)

    assert told(2200) == "--batch_size=4 --recompute=3 would take 2,123 MiB and fit"
    assert told(2100) == "--batch_size=4 --recompute=4 would take 1,866 MiB and fit"
    assert told(1800).startswith("--batch_size=4 --recompute=4 would take 1,866 MiB: take a")
    assert told(2300, recompute=4).startswith("--batch_size=1 --recompute=3 --total_batch_size=128")


def test_the_hosts_memory_is_shared_by_its_virtual_devices(monkeypatch):
    alone = memory.device_memory()
    monkeypatch.setattr(memory.jax, "local_device_count", lambda: 8)
    assert memory.device_memory() == pytest.approx(alone / 8, rel=0.01)


@pytest.mark.parametrize(
    ("group", "files", "limit"),
    [
        ("0::/a/b\n", {"a/memory.max": "1000", "a/b/memory.max": "max"}, 1000),
        ("0::/docker/of/the/host\n", {"memory.max": "2000"}, 2000),  # as a container sees it
        ("3:cpu:/a\n4:memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "3000"}, 3000),
        ("0::/a\n", {"a/memory.max": "max"}, None),
    ],
)
def test_the_hosts_memory_is_what_a_container_may_have(monkeypatch, tmp_path, group, files, limit):
    alone = memory.device_memory()
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    (tmp_path / "group").write_text(group)
    monkeypatch.setattr(machine, "GROUP", tmp_path / "group")
    monkeypatch.setattr(machine, "GROUPS", tmp_path)
    assert memory.device_memory() == (limit or pytest.approx(alone, rel=0.01))


def peak(function, *shapes, donated=(), cpu=False) -> int:
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return liveness.plan(jax.jit(function).trace(*args).jaxpr.jaxpr, donated, cpu=cpu).peak


def test_rules_of_liveness():
    """Each on a function of 4 KiB arrays."""
    K, x = 4096, (32, 32)
    assert peak(lambda a, b: a @ b, x, x) == K
    assert peak(lambda a, b: jnp.tanh(a * 2 + 1) @ b, x, x) == 2 * K  # fused; then the operand
    assert peak(lambda a: a * 2 + 1, x) == K
    assert peak(lambda a: (a @ a) + 1, x) == K  # in place of what dies
    assert peak(lambda a: (a @ a) @ a + (a @ a), x) == 2 * K  # the same product once
    assert peak(lambda a, b: a + b, x, x, donated=(0,)) == 0
    # memory that nobody reads holds the product until it is written
    assert peak(lambda m, a: jnp.sin(a @ a) @ a, x, x) == 2 * K
    assert peak(lambda m, a: jnp.sin(a @ a) @ a, x, x, donated=(0,)) == K


def again(m, g):
    """Both arguments are read behind the first result: by XLA:CPU out of a copy."""
    new = m * 0.9 + g
    return new, (new * 2).sum() + g * m


def from_the_result(m, g):
    new = m * 0.9 + g
    return new, jnp.sqrt(new) + g


def from_what_the_result_is_of(m, g):
    new, some = m * 0.9 + g, g.sum() > 0
    return jnp.where(some, new, m), jnp.where(some, jnp.sqrt(new) + g, g)


@pytest.mark.parametrize(
    ("function", "copies"), [(again, 1), (from_the_result, 0), (from_what_the_result_is_of, 2)]
)
def test_donated_arguments_are_copied_where_xla_copies_them(function, copies):
    """And only on a CPU: other compilers make both results in one loop."""
    x = jax.ShapeDtypeStruct((32, 32), jnp.float32)
    scalar = 0 if function is from_the_result else 4
    compiled = jax.jit(function, donate_argnums=(0, 1)).lower(x, x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes == copies * 4096 + scalar
    assert peak(function, x.shape, x.shape, donated=(0, 1), cpu=True) == copies * 4096 + scalar
    assert peak(function, x.shape, x.shape, donated=(0, 1)) == scalar
