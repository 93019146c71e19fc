"""What XLA would run of a jaxpr: instructions, and the memory that each reads and writes.

What is computed twice is computed once; elementwise work is done again wherever it is read, and
written to memory where a kernel or a matrix product reads it.

For instance of a and b with 4096 bytes each:

    tanh(a * 2 + 1) @ b    c = mul a 2.0      c, d: not written, read from a's memory
                           d = add c 1.0
                           e = tanh d         written, because a product reads it
                           f = dot_general e b

is two instructions: `mul`, `add` and `tanh` in one loop, which reads a and writes the 4096 bytes of
e; then the product, which reads e and b and writes the 4096 bytes of f. liveness.py reads off them
that beside the arguments 8192 bytes are needed at most, in the second.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from jax.extend.core import Literal

# Calls that are part of their caller once compiled.
CALLS = {
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "shard_map",
}
# The same bytes under another shape or type.
VIEWS = {"reshape", "squeeze", "expand_dims", "optimization_barrier", "pcast", "pvary", "copy"}
# Not fused with what made their operands or with what reads their results.
KERNELS = {"dot_general", "ffi_call", "sort", "scatter", "scatter-add", "scan", "pallas_call",
           "all_gather", "psum", "psum_invariant", "while", "cond"}  # fmt: skip
REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "argmax", "argmin", "reduce_scatter"}
# Sums over the devices, of which XLA:CPU makes one where it can.
SUMS = {"psum", "psum_invariant"}
# Done once, and written down, where more than one reads the result.
EXPENSIVE = {"exp", "log", "log1p", "tanh", "div", "rsqrt", "sqrt", "pow", "erf", "logistic"}


@dataclass(eq=False)
class Value:
    """An array of the jaxpr.

    | flag      | if it is set                            | if not                              |
    |-----------|-----------------------------------------|-------------------------------------|
    | written   | it is in memory: `buffers` is its own   | it is computed again wherever it is |
    |           |                                         | read, from what is in `buffers`     |
    | expensive | that takes an exp, a division, ...: on  | several readers each compute it for |
    |           | a CPU it is written for several readers | themselves, unless one is a kernel  |
    | widened   | XLA:CPU writes it as float32, for a     | it has its own dtype                |
    |           | batched matrix product                  |                                     |
    """

    size: int  # bytes
    dtype: str
    readers: list[str] = field(default_factory=list)  # primitives
    buffers: frozenset["Buffer"] = frozenset()  # what must be in memory to have it
    written: bool = False
    expensive: bool = False
    widened: bool = False


@dataclass(eq=False)
class Buffer:
    """Memory of one array."""

    size: int
    made_by: str  # the named scopes around it, e.g. classifier.forward
    first: int = 0  # instructions between which it must be there
    last: int = 0


@dataclass
class Equation:
    """A line of the jaxpr, calls written out."""

    primitive: str
    params: dict
    operands: list[Value | None]  # None: a literal
    results: list[Value]
    scope: str
    over: dict[int, int] = field(default_factory=dict)  # result -> operand whose place it takes


@dataclass
class Instruction:
    """What XLA will run as one."""

    reads: frozenset[Buffer]
    writes: list[Buffer]
    rewrites: frozenset[Buffer] = frozenset()  # of those it reads, what it writes results over
    in_place: bool = False  # may write over an operand
    light: bool = False  # no kernel: may be done as soon as its operands are there
    inside: int = 0  # bytes of a loop's body


class Program(NamedTuple):
    """A jaxpr as instructions, with the memory of its arguments and results (None: a literal)."""

    instructions: list[Instruction]
    arguments: list[Value]
    results: list[Value | None]


def lower(jaxpr, cpu: bool, peak_of_loop: Callable) -> Program:
    """The instructions of a jaxpr (not closed), in its order.

    cpu: whether as XLA:CPU does: expensive work is done once and written down where more than one
    reads it, what a batched matrix product reads is float32 where it is bfloat16 by the jaxpr, and
    sums over the devices are made together.
    peak_of_loop(body, places): bytes that the body of a loop needs, whose i-th result is written
    over argument places[i].
    """
    values, equations = _flatten(jaxpr)
    arguments = [values[v] for v in jaxpr.invars]
    results = [None if isinstance(v, Literal) else values[v] for v in jaxpr.outvars]
    equations = _needed(equations, results, cpu)
    if cpu:
        equations = _summed_together(equations)
    for i, argument in enumerate(arguments):
        argument.buffers, argument.written = frozenset([Buffer(0, f"argument {i}")]), True
    return Program(_fuse(equations, results, cpu, peak_of_loop), arguments, results)


def _flatten(jaxpr) -> tuple[dict, list[Equation]]:
    """Its variables, and its equations with calls written out and repetitions left out."""
    values, equations, known = {}, [], {}

    def walk(jaxpr, scope):
        for eqn in jaxpr.eqns:
            name = eqn.primitive.name
            operands = [None if isinstance(v, Literal) else values[v] for v in eqn.invars]
            inner = "/".join(filter(None, (scope, str(eqn.source_info.name_stack))))
            if name in CALLS:
                body = eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
                body = getattr(body, "jaxpr", body)
                values.update(zip(body.invars, operands, strict=True))
                values.update((v, _value(v.aval)) for v in body.constvars)
                walk(body, inner)
                for outer, v in zip(eqn.outvars, body.outvars, strict=True):
                    values[outer] = None if isinstance(v, Literal) else values[v]
                continue
            if name in VIEWS or (name == "convert_element_type" and _same_type(eqn)):
                values.update(zip(eqn.outvars, operands, strict=True))
                continue
            literals = [v.val for v in eqn.invars if isinstance(v, Literal)]
            key = (name, tuple(map(id, operands)), str(literals), _text(eqn.params))
            if name in KERNELS - {"dot_general"} or key not in known:
                known[key] = [_value(v.aval) for v in eqn.outvars]
                over = _places(eqn)
                equations.append(Equation(name, eqn.params, operands, known[key], inner, over))
            values.update(zip(eqn.outvars, known[key], strict=True))

    for v in (*jaxpr.invars, *jaxpr.constvars):
        values[v] = _value(v.aval)
    walk(jaxpr, "")
    return values, equations


def _places(eqn) -> dict[int, int]:
    """Results of a kernel that may be in the place of operands -> which of them."""
    if eqn.primitive.name == "ffi_call":
        return {result: operand for operand, result in eqn.params["input_output_aliases"]}
    if eqn.primitive.name.startswith("scatter"):
        return {0: 0}
    if eqn.primitive.name == "scan":
        # How many arrays it carries JAX's versions say differently: they are whole in the body,
        # between constants, which are so too, and what it takes and gives a row of at a time.
        body = eqn.params["jaxpr"].jaxpr
        carried = _number_whole(eqn.outvars, body.outvars)
        constants = _number_whole(eqn.invars, body.invars) - carried
        return {i: constants + i for i in range(carried)}
    return {}


def _number_whole(outside, inside) -> int:
    pairs = zip(outside, inside, strict=True)
    return sum(whole.aval.ndim == v.aval.ndim for whole, v in pairs)


def _text(params: dict) -> str:
    """Parameters of a primitive, to be compared."""
    return str(sorted((k, v) for k, v in params.items() if k not in ("sharding", "mesh")))


def _value(aval) -> Value:
    if not hasattr(aval, "shape"):
        return Value(0, "")
    return Value(math.prod(aval.shape) * aval.dtype.itemsize, str(aval.dtype))


def _same_type(eqn) -> bool:
    return eqn.invars[0].aval.dtype == eqn.outvars[0].aval.dtype


def _needed(equations: list[Equation], results, cpu: bool) -> list[Equation]:
    """The equations that the results depend on; each value learns who reads it."""
    wanted, kept = {id(r) for r in results if r}, []
    for equation in reversed(equations):
        if any(id(r) in wanted for r in equation.results):
            kept.append(equation)
            wanted |= {id(v) for v in equation.operands if v}
            for v in equation.operands:
                if v:
                    v.readers.append(equation.primitive)
                    v.widened |= cpu and _is_batched(equation)
    return kept[::-1]


def _summed_together(equations: list[Equation]) -> list[Equation]:
    """Sums over the devices that do not wait for each other as one: then all operands and all
    results are in memory at once."""
    done, held = [], []

    def make() -> None:
        if held:
            operands = [v for e in held for v in e.operands]
            results = [v for e in held for v in e.results]
            done.append(replace(held[0], operands=operands, results=results))
            held.clear()

    for e in equations:
        made = {id(v) for sum in held for v in sum.results}
        if any(id(v) in made for v in e.operands):
            make()
        (held if e.primitive in SUMS else done).append(e)
    make()
    return done


def _is_batched(e: Equation) -> bool:
    return e.primitive == "dot_general" and bool(e.params["dimension_numbers"][1][0])


def _fuse(
    equations: list[Equation], results, cpu: bool, peak_of_loop: Callable
) -> list[Instruction]:
    """The equations as XLA groups them."""
    instructions, outputs = [], {id(v) for v in results}

    def write(value: Value, scope: str, reads=None) -> None:
        """Have an instruction that computes `value` from what is in memory."""
        if value.written:
            return
        reads = value.buffers if reads is None else reads
        _give_memory(value, scope)
        instructions.append(Instruction(reads, list(value.buffers), in_place=True, light=True))

    for e in equations:
        operands = [v for v in e.operands if v]
        if e.primitive in KERNELS:
            for v in operands:
                write(v, e.scope)
        reads = frozenset().union(*(v.buffers for v in operands))
        if e.primitive in KERNELS:
            instructions.append(_kernel(e, reads, peak_of_loop))
        elif e.primitive in REDUCTIONS:
            for v in e.results:
                _give_memory(v, e.scope)
            writes = [b for v in e.results for b in v.buffers]
            instructions.append(Instruction(reads, writes, light=True))
        else:
            for v in e.results:
                v.buffers = reads
                v.expensive = e.primitive in EXPENSIVE or any(
                    x.expensive and not x.written for x in operands
                )
                many = len(v.readers) > 1
                by_kernels = many and any(r in KERNELS for r in v.readers)
                if by_kernels or (cpu and many and v.expensive) or (v.readers and id(v) in outputs):
                    write(v, e.scope)
    for v in results:
        if v:
            write(v, "results")
    return instructions


def _give_memory(value: Value, scope: str) -> None:
    size = value.size * (2 if value.widened and value.dtype == "bfloat16" else 1)
    value.buffers, value.written = frozenset([Buffer(size, scope)]), True


def _kernel(e: Equation, reads: frozenset[Buffer], peak_of_loop: Callable) -> Instruction:
    """The instruction of a kernel, some of whose results may be in the place of operands."""
    inside = 0
    if e.primitive == "scan" and e.params["length"]:
        inside = peak_of_loop(e.params["jaxpr"].jaxpr, list(e.over.values()))
    writes, rewrites = [], frozenset()
    for i, v in enumerate(e.results):
        operand = e.operands[e.over[i]] if i in e.over else None
        if operand and operand.buffers & rewrites:  # zeros of one shape are one value
            operand = None
        if operand and operand.size == v.size and operand.buffers:
            v.buffers, v.written = operand.buffers, True
            rewrites |= v.buffers
        else:
            _give_memory(v, e.scope)
            writes += v.buffers
    return Instruction(reads, writes, rewrites, inside=inside)
