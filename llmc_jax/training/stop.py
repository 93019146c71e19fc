"""SIGTERM, SIGINT and SIGHUP end a run after the step it is in."""

import signal
import threading
from collections.abc import Callable

from llmc_jax import interrupt


class Stop:
    """A context in which the first signal only sets `requested`, and says so.

    It also puts the signals' own effect back: the second one ends the process at once, also where
    Python has no say because a compiled step is running. But a second SIGHUP does nothing: where a
    terminal is closed there come two, the system's and the shell's.
    """

    def __init__(self, newest: Callable[[], int | None] = lambda: None):
        """newest: the step of the newest checkpoint; None where there will be none."""
        self.requested = 0  # the signal's number
        self._newest = newest
        self._before = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # others may not
            self._before = interrupt.take_over(self._first)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _first(self, number: int, _frame) -> None:
        self.requested = number
        for other in self._before:
            signal.signal(other, signal.SIG_IGN if other == signal.SIGHUP else signal.SIG_DFL)
        name, newest = signal.Signals(number).name, self._newest()
        cost = "" if newest is None else f", without the steps since {newest}"
        interrupt.say(f"{name}: stopping after this step; a second signal ends at once{cost}")
