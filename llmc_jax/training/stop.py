"""SIGTERM and SIGINT end a run after the step it is in."""

import signal
import threading

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """A context in which the first signal only sets `requested`.

    It also puts the signals' own effect back: the second one ends the process at once, also where
    Python has no say because a compiled step is running.
    """

    def __init__(self):
        self.requested = 0  # the signal's number
        self._before = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # others may not
            self._before = {number: signal.signal(number, self._first) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @staticmethod
    def name(number: int) -> str:
        """What a signal is called."""
        return signal.Signals(number).name

    def _first(self, number: int, _frame) -> None:
        self.requested = number
        for other in self._before:
            signal.signal(other, signal.SIG_DFL)
