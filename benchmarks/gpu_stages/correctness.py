"""Every kernel of ours against jnp in float64: the relative error ||result - exact|| / ||exact||.

A result may be at most twice as far off as jnp in the same dtype (plus one rounding), or as far as
its dtype is known to be: the kernels get logits rounded to bfloat16 where jnp keeps float32. Three
seeds; freed memory is full of NaN before each; and the same inputs again must give the same bits,
but for attention=cuda, whose dq is a sum in the order in which blocks come.
"""

from collections.abc import Iterator
from functools import partial
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu_stages import jax_ops, results, stage
from benchmarks.gpu_stages.stage import Row, Skip
from llmc_jax import ops
from llmc_jax.ops import cases
from llmc_jax.ops.cases import Case


def seeds() -> range:
    return range(1 if results.small() else 3)


# Good enough whatever jnp does.
KNOWN = {"bfloat16": 1e-2, "float16": 2e-3, "float32": 1e-5}
# Of GPT-2's own sizes and not multiples of a tile, the most telling first.
EXTRA = {
    "attention": (
        cases.attention(1, 1000, 12, 64),
        cases.attention(1, 200, 2, 128),
        cases.attention(2, 64, 12, 64),
        cases.attention(1, 128, 12, 64),
        cases.attention(2, 1024, 3, 64),
    ),
    "classifier": (cases.classifier(1, 100, 64, 50257, 50304),),
    "encoder": (cases.encoder(2, 1000, 768, 5003, 1024),),
    "layernorm": (cases.layernorm(2, 1000, 768),),
    "residual_layernorm": (cases.residual_layernorm(2, 1000, 768),),
    "matmul": (cases.matmul(1, 1000, 768, 2304),),
    "mlp": (cases.mlp(1, 1000, 768),),
}
HALF = {"attention": (cases.attention(1, 200, 2, 64), cases.attention(1, 200, 2, 128))}
SMALL = {
    "classifier": (cases.classifier(2, 5, 12, 60, 64),),
    "encoder": (cases.encoder(2, 5, 12, 40, 8),),
}
FIRST, OTHERS = slice(1), slice(1, None)  # of EXTRA
MORE = 3  # of the ops' own cases


def rows() -> list[Row]:
    """There may not be time for all: first each op once in bfloat16, then in float32."""
    first, *later = (rows_of(*each) for each in tried())
    return [*first, *optimizer_rows(), *chain(*later)]


def tried() -> list[tuple[dict, str]]:
    """(op -> cases, dtype), in the order in which they are checked."""
    if results.small():
        return [(SMALL, "bfloat16")]
    first, others = ({op: every[part] for op, every in EXTRA.items()} for part in (FIRST, OTHERS))
    own = {op: every[:MORE] for op, every in cases.CASES.items()}
    return [
        (first, "bfloat16"),
        (first, "float32"),
        (others, "bfloat16"),
        (HALF, "float16"),
        (own, "bfloat16"),
        (others, "float32"),
        (own, "float32"),
    ]


def rows_of(cases_of: dict, dtype: str) -> Iterator[Row]:
    for op, every in cases_of.items():
        for case in every:
            for name in jax_ops.kernels(op):
                if name != "cudnn":  # not ours
                    run = partial(check, op, name, case, dtype)
                    yield Row(title(op, case, dtype), name, run, 30)


def optimizer_rows() -> Iterator[Row]:
    for op, run in (("adamw", check_adamw), ("global_norm", check_global_norm)):
        for name in jax_ops.kernels(op):
            yield Row(op, name, partial(run, name), 30)


def title(op: str, case: Case, dtype: str) -> str:
    sizes = ["x".join(map(str, spec.shape)) for spec in case.inputs[:2]]
    return f"{op} {' '.join(sizes)} {dtype}"


def check(op: str, name: str, case: Case, dtype: str) -> dict:
    jax_ops.implementation(op, name)
    worst: dict[str, float] = {}
    ok = same_bits = True
    for seed in seeds():
        exact = reference(op, case, "float64", seed)
        naive = reference(op, case, dtype, seed)
        poison()
        result = run(op, name, case, dtype, seed)
        again = run(op, name, case, dtype, seed)
        for i, (r, n, e) in enumerate(zip(result, naive, exact, strict=True)):
            error, error_of_jnp = relative_error(r, e), relative_error(n, e)
            limit = 2 * error_of_jnp + float(jnp.finfo(r.dtype).eps)
            ok &= error <= max(limit, KNOWN[dtype])  # not so for NaN
            worst[str(i)] = max(worst.get(str(i), 0), error, key=lambda x: (x != x, x))
        same_bits &= all(map(same, result, again))
    same_expected = name.endswith("deterministic") or op != "attention"
    errors = [float(f"{e:.2g}") for e in worst.values()]
    verdict = dict(errors=errors, worst=repr(max(errors)), same_bits=same_bits)
    if not ok or (same_expected and not same_bits):
        return dict(failed="wrong" if not ok else "other bits the second time", **verdict)
    return dict(ok=True, **verdict)


_REFERENCES = {}


def reference(op: str, case: Case, dtype: str, seed: int) -> list[np.ndarray]:
    """`run` of jnp, once for all implementations."""
    key = op, case.inputs, dtype, seed
    if key not in _REFERENCES:
        _REFERENCES[key] = run(op, "jnp", case, dtype, seed)
    return _REFERENCES[key]


def run(op: str, name: str, case: Case, dtype: str, seed: int) -> list[np.ndarray]:
    """[outputs..., gradients...]; the same problem in every dtype."""
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        problem = make_problem(op, case, dtype, seed)
        try:
            found = compiled(op, name, case)(*problem)
            return [np.asarray(x) for x in jax.tree.leaves(found)]
        except jax.errors.JaxRuntimeError as error:
            if "INVALID_ARGUMENT" in str(error):
                raise Skip(f"refused: {' '.join(str(error).split())[:200]}") from error
            raise


_COMPILED = {}


def compiled(op: str, name: str, case: Case):
    key = op, name, case.inputs
    if key not in _COMPILED:
        _COMPILED[key] = jax_ops.both(op, name, case)
    return _COMPILED[key]


def make_problem(op: str, case: Case, dtype: str, seed: int) -> tuple[list, object]:
    """(inputs, dout) with some targets ignored; weights as small as a model's."""
    plain = cases.make_inputs(case, jnp.dtype(dtype), seed)
    inputs = [
        x / 16 if spec.kind == "tensor" and len(spec.shape) == 2 else x  # exact in bfloat16
        for x, spec in zip(plain, case.inputs, strict=True)
    ]
    if case.dout is not None:
        return inputs, inputs[case.dout]
    forward = partial(ops.TABLE[op]["jnp"].forward, **case.static)
    out = jax.eval_shape(forward, *inputs)[0]
    rng = np.random.default_rng(1000 + seed)

    def make(x):
        values = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
        return values.astype(jnp.bfloat16).astype(x.dtype)

    return inputs, jax.tree.map(make, out)


def poison() -> None:
    """Fill memory that is free, and will be the results', with NaN."""
    count, size = (1, 1 << 10) if results.small() else (8, 1 << 24)
    jax.block_until_ready([jnp.full(size, jnp.nan, jnp.float32) for _ in range(count)])


def relative_error(result, exact) -> float:
    exact = np.asarray(exact, np.float64)
    norm = np.linalg.norm(exact)
    return float(np.linalg.norm(np.asarray(result, np.float64) - exact) / (norm if norm else 1))


def same(a, b) -> bool:
    return a.tobytes() == b.tobytes()


def leaves(seed: int, count: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = [(1,), (3,), (5, 7), (1000,), (301, 67), *[(9,)] * (2 if results.small() else 60)]
    return [rng.normal(size=(count, *size)).astype(np.float32) for size in sizes]


def check_global_norm(name: str) -> dict:
    norm = jax.jit(jax_ops.implementation("global_norm", name))
    errors, same_bits = [], True
    for seed in seeds():
        grads = [x[0] for x in leaves(seed)]
        wanted = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in grads))
        poison()
        result, again = (np.asarray(norm(list(map(jnp.asarray, grads)))) for _ in range(2))
        errors.append(abs(float(result) / wanted - 1))
        same_bits &= same(result, again)
    return verdict_of(errors, 1e-6, same_bits)


def check_adamw(name: str) -> dict:
    from llmc_jax.ops.adamw import Hyper

    hyper = Hyper(jnp.float32(1e-3), jnp.float32(0.7), jnp.int32(3), 0.9, 0.95, 1e-8)

    def update(implementation, trees):
        params, grads, m, v = trees
        decay = [0.1] * len(params)
        return implementation(params, grads, m, v, hyper, weight_decay=decay)

    chosen = jax.jit(partial(update, jax_ops.implementation("adamw", name)))
    errors, same_bits = [], True
    for seed in seeds():
        data = leaves(seed)
        trees = [[jnp.asarray(x[i]) for x in data] for i in range(4)]
        trees[3] = [x * x for x in trees[3]]
        with jax.enable_x64(True):
            wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), trees)
            wanted = jax.device_get(jax.jit(partial(update, ops.TABLE["adamw"]["jnp"]))(wide))
        poison()
        result, again = (jax.device_get(chosen(trees)) for _ in range(2))
        pairs = list(zip(*map(jax.tree.leaves, (result, wanted, again)), strict=True))
        errors.append(max(relative_error(r, w) for r, w, _ in pairs))
        same_bits &= all(same(r, a) for r, _, a in pairs)
    return verdict_of(errors, 1e-5, same_bits)


def verdict_of(errors: list[float], limit: float, same_bits: bool) -> dict:
    verdict = dict(errors=[float(f"{e:.2g}") for e in errors], same_bits=same_bits)
    if not all(error <= limit for error in errors):
        return dict(failed="wrong", **verdict)
    return dict(ok=True, **verdict) if same_bits else dict(failed="other bits", **verdict)


if __name__ == "__main__":
    stage.run("correctness", rows)
