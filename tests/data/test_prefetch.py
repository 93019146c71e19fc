"""What is made ahead comes in order, in time and not too early."""

import threading
from contextlib import closing

import pytest

from llmc_jax.data.prefetch import prefetch


def test_everything_comes_in_order():
    assert list(prefetch(lambda n: n * n, range(20))) == [n * n for n in range(20)]
    assert list(prefetch(str, [])) == []


def test_the_next_ones_are_made_while_one_is_used_and_no_more():
    made, third = [], threading.Event()

    def make(n):
        made.append(n)
        if n == 2:
            third.set()
        return n

    with closing(prefetch(make, range(9), ahead=2)) as numbers:
        assert next(numbers) == 0
        assert third.wait(10)  # nobody has asked for 1 yet
        assert made == [0, 1, 2]


def test_an_error_comes_in_its_place():
    def make(n):
        if n == 2:
            raise ValueError("the third")
        return n

    numbers = prefetch(make, range(5))
    assert [next(numbers), next(numbers)] == [0, 1]
    with pytest.raises(ValueError, match="the third"):
        next(numbers)


def test_closing_ends_the_thread():
    numbers = prefetch(str, range(10**9))
    next(numbers)
    numbers.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]
