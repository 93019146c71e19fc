"""What is needed next, made while the present is used."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

AHEAD = 2  # one in use by the device's next step, one being made


def prefetch(make: Callable, arguments: Iterable, *, ahead: int = AHEAD) -> Iterator:
    """make(a) for each of `arguments`, in order; up to `ahead` of them are made in advance.

    A thread of its own makes them: reading and copying leave Python's lock free. What `make` raises
    is raised where its result would have come. Close the iterator (contextlib.closing) to end
    before the arguments do.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        made = deque()
        try:
            for argument in arguments:
                made.append(pool.submit(make, argument))
                if len(made) > ahead:
                    yield made.popleft().result()
            while made:
                yield made.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
