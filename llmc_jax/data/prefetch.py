"""What is needed next, made while the present is used."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

AHEAD = 2  # one in use by the device's next step, one being made


def prefetch(make: Callable, arguments: Iterable, *, ahead: int = AHEAD) -> Iterator:
    """make(a) for each of `arguments`, in order; up to `ahead` of them are made in advance.

    A thread of its own makes them: reading and copying leave Python's lock free. What `make` raises
    is raised where its result would have come. Close the iterator (contextlib.closing) to end
    before the arguments do.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        try:
            yield from in_order(pool, make, arguments, ahead=ahead)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def in_order(pool: Executor, make: Callable, arguments: Iterable, *, ahead: int) -> Iterator:
    """make(a) for each of `arguments`, in order, by the workers of a pool that is the caller's; as
    in `prefetch`."""
    made = deque()
    for argument in arguments:
        made.append(pool.submit(make, argument))
        if len(made) > ahead:
            yield made.popleft().result()
    while made:
        yield made.popleft().result()
