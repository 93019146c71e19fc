"""The memory of a traced function as XLA will plan it, told without compiling it.

XLA's plan follows from a few rules, which are applied here to the jaxpr: what is computed twice is
computed once; elementwise work is done again wherever it is read, and written to memory where a
kernel or a matrix product reads it; a result takes the place of an operand that dies; memory that
is donated and never read holds other things until its result is written. So every op is counted as
it is written, with no table of sizes kept by hand.

Compared with XLA:CPU's own plan in tests/training/test_memory.py. On other platforms it is an
estimate by the same rules.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from llmc_jax.training.instructions import Buffer, Instruction, Value, lower


@dataclass
class Plan:
    """Bytes beyond the function's arguments, at the moment when they are most."""

    peak: int
    where: str  # the named scopes of what is run then


def plan(jaxpr, donated: Sequence[int] = (), *, cpu: bool = False) -> Plan:
    """The plan for a jaxpr (not closed) whose i-th result is written over argument donated[i].

    cpu: whether as XLA:CPU does (instructions.lower says how). There an argument is also copied
    first where one result is written over it and another is computed from it in a loop of its own;
    other compilers make both in one loop.
    """

    def peak_of_loop(body, places) -> int:
        return plan(body, places, cpu=cpu).peak

    made, arguments, results = lower(jaxpr, cpu, peak_of_loop)
    instructions = _early(made)
    _set_lifetimes(instructions, results)
    over = {
        _own(result): _own(arguments[i])
        for i, result in zip(donated, results, strict=False)
        if result and result.buffers and i < len(arguments)
    }
    sizes = {_own(argument): argument.size for argument in arguments}
    copied = _copies(instructions, over) if cpu else {}
    placed = _place_in_donated(instructions, over, sizes, copied)
    held = [Buffer(sizes[a], "copies", 0, last) for a, last in copied.items()]
    return _sweep(instructions, held, placed)


def _early(instructions: list[Instruction]) -> list[Instruction]:
    """The instructions in the order that XLA would run them.

    Its rule (ListMemoryScheduler of hlo_memory_scheduler.h): of what could be next, first what
    frees most and needs least. Here kernels stay in the jaxpr's order, and what gives back at least
    as much as it takes, like a sum, is done as soon as its operands are there. Pinned by the steps
    with jnp in test_the_total_is_what_xla_plans, which without it are 7 % too large.
    """
    last_reader = {b: i for i, instruction in enumerate(instructions) for b in instruction.reads}
    made: dict[Buffer, tuple[int, int]] = {}  # where in the order
    read: dict[Buffer, tuple[int, int]] = {}  # by the last so far
    keys = []
    for i, instruction in enumerate(instructions):
        place, gain = (i, 0), 0
        freed = [b for b in instruction.reads if last_reader[b] == i]
        # of equal ones that which was read last, so that the plan does not depend on their hashes
        largest = max(freed, key=lambda b: (b.size, read.get(b, (-1, 0))), default=None)
        written = sum(b.size for b in instruction.writes)
        if instruction.light and largest and largest.size >= written:
            behind = [made[b] for b in instruction.reads & made.keys()]
            behind += [read[b] for b in {largest} & read.keys()]
            index, count = max(behind, default=(-1, 0))
            place, gain = (index, count + 1), largest.size - written
        made.update((b, place) for b in instruction.writes)
        read.update((b, max(place, read.get(b, place))) for b in instruction.reads)
        keys.append((*place, -gain, i))  # of two that could be next, what gives back more
    return [instructions[i] for *_, i in sorted(keys)]


def _own(value: Value) -> Buffer:
    return next(iter(value.buffers))


def _set_lifetimes(instructions: list[Instruction], results) -> None:
    for i, instruction in enumerate(instructions):
        for buffer in instruction.writes:
            buffer.first = buffer.last = i
        for buffer in instruction.reads:
            buffer.last = i
    for v in results:
        for buffer in v.buffers if v else ():
            buffer.last = len(instructions)


def _copies(instructions, over: dict[Buffer, Buffer]) -> dict[Buffer, int]:
    """Arguments that are copied at the start -> when the copy is read last.

    XLA's rule (copy_insertion.cc): an argument that a result is written over is copied, unless all
    that read it are sure to have done so by then. It decides that before there is an order, so sure
    is only what made the result's operands, and theirs, and the result itself. Pinned by
    test_donated_arguments_are_copied_where_xla_copies_them.
    """
    maker = {b: i for i, instruction in enumerate(instructions) for b in instruction.writes}
    writers, readers = defaultdict(set), defaultdict(set)
    for i, instruction in enumerate(instructions):
        for buffer in (*instruction.writes, *instruction.rewrites):
            writers[buffer].add(i)
        for buffer in instruction.reads:
            readers[buffer].add(i)
    copied = {}
    for result, argument in over.items():
        if result not in maker or len(readers[argument]) < 2:
            continue
        before, queue = {maker[result]}, [maker[result]]
        while queue:
            reads = instructions[queue.pop()].reads
            made = frozenset().union(*(writers[b] for b in reads)) - before
            before |= made
            queue += made
        if readers[argument] - before:
            copied[argument] = max(readers[argument])
    return copied


def _place_in_donated(instructions, over: dict[Buffer, Buffer], sizes, copied) -> set[Buffer]:
    """Buffers that need no memory: results over arguments, and what fits in donated memory that
    nobody reads (any more, after a copy) while its result is not there yet. Largest first, as XLA
    does."""
    read = frozenset().union(*(i.reads for i in instructions))
    placed = {result for result in over if result.size == sizes[over[result]]}
    rooms = [
        (sizes[argument], [(result.first, result.last)])
        for result, argument in over.items()
        if (argument not in read or argument in copied) and result in placed
    ]
    rooms.sort(key=lambda room: room[0])
    buffers = [b for i in instructions for b in i.writes if b not in placed and b.size]
    for buffer in sorted(buffers, key=lambda b: -b.size):
        for size, taken in rooms:
            if size >= buffer.size and all(
                buffer.last < first or last < buffer.first for first, last in taken
            ):
                taken.append((buffer.first, buffer.last))
                placed.add(buffer)
                break
    return placed


def _sweep(instructions, copied: list[Buffer], placed: set[Buffer]) -> Plan:
    """The moment when most is alive."""
    alive = set(copied)
    best = Plan(0, "")
    for i, instruction in enumerate(instructions):
        writes = [b for b in instruction.writes if b not in placed]
        dying = {b for b in alive if b.last <= i and b not in writes}
        now = sum(b.size for b in alive) + sum(b.size for b in writes) + instruction.inside
        if instruction.in_place and any(
            b.size == w.size for b in dying & instruction.reads for w in writes
        ):
            now -= writes[0].size
        if now > best.peak:
            best = Plan(now, instruction.writes[0].made_by if instruction.writes else "")
        alive = {b for b in alive | set(writes) if b.last > i}
    return best
