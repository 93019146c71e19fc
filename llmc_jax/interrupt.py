"""Signals that end a program: at once while it starts, and Ctrl-C never unnoticed.

Python's own way with Ctrl-C is an exception in the line that is being run. While a program starts,
that may be a line that makes another error of it, or one of a callback whose exceptions go nowhere;
and no line is run as long as C++ waits, for other processes perhaps.
"""

import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

FLUSH_S = 1  # how long what was printed may take to be written, before the process ends
AGAIN_S = 0.1  # after which an interruption that went nowhere comes again


def taken() -> list[int]:
    """The signals that end a run. A SIGHUP that is ignored stays so: that is what nohup is for."""
    hangup = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hangup]


class _Start:
    """A thread that ends the process when a signal comes, whatever the others are doing."""

    def __init__(self, words: str):
        self.words, self._came = words, 0
        reader, self._writer = _pipe()
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._wait, args=[reader], daemon=True)
        self._thread.start()
        self.before = {number: signal.signal(number, self.note) for number in taken()}

    def note(self, number: int, _frame) -> None:
        """The signals' handler, in the main thread: what it interrupted goes on, so that what is
        being printed can be."""
        self._came = number

    def _wait(self, reader: int) -> None:
        while number := os.read(reader, 1):
            # Or it is for the handler that has taken this one's place.
            if self._came or signal.getsignal(number[0]) == self.note:
                self._end(self._came or number[0])
        os.close(reader)

    def _end(self, number: int) -> None:
        # Behind what was printed, unless nobody takes that: a pager, a terminal that was stopped.
        flush = threading.Thread(target=_flush, daemon=True)
        flush.start()
        flush.join(FLUSH_S)
        say(f"{signal.Signals(number).name} {self.words}")
        os._exit(128 + number)

    def over(self) -> None:
        """End the thread: a process that forks is to have none."""
        signal.set_wakeup_fd(-1)
        os.close(self._writer)
        self._thread.join()


_start: _Start | None = None


def end_at_once(words: str) -> None:
    """From here on a signal ends the process, with a sentence of its name and `words`, until
    as_before() or take_over(). Nothing is closed or cleared away: what is written then must be such
    that this does no harm."""
    global _start
    if _start:
        _start.words = words
    else:
        _start = _Start(words)


def as_before() -> None:
    """From here on signals do what they did before end_at_once()."""
    global _start
    if _start:
        for number, handler in _start.before.items():
            signal.signal(number, handler)
        _start.over()
        _start = None


def take_over(handler: Callable) -> dict:
    """From here on `handler` gets the signals; what got them before, also before end_at_once()."""
    global _start
    before = {number: signal.signal(number, handler) for number in taken()}
    if _start:
        before |= _start.before
        _start.over()
        _start = None
    return before


def say(sentence: str) -> None:
    """Write a line to standard error: not by print, which a signal may have interrupted."""
    with suppress(OSError):  # on a terminal behind a bar, and ^C
        os.write(2, (("\n" if os.isatty(2) else "") + sentence + "\n").encode())


def unraisable(told) -> None:
    """A sys.unraisablehook: an interruption in a callback, like JAX's of the garbage collector,
    comes again outside of it."""
    if told.exc_type is not KeyboardInterrupt:
        return sys.__unraisablehook__(told)
    threading.Thread(target=_again, daemon=True).start()


def _again() -> None:
    """Interrupt the main thread, which may wait for something and is woken, once it has left the
    hook: an exception in that goes nowhere either."""
    main, left = threading.main_thread().ident, False
    while not left:
        time.sleep(AGAIN_S)
        frame = sys._current_frames().get(main)
        while frame and frame.f_code is not unraisable.__code__:
            frame = frame.f_back
        left = frame is None
    signal.pthread_kill(main, signal.SIGINT)


def caused(error: BaseException | None) -> bool:
    """Whether an interruption is what led to `error`, as where an import fails for it."""
    while error and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _pipe() -> tuple[int, int]:
    """A pipe's two ends; not in the place of a standard stream that is closed."""
    ends = os.pipe()
    above = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3) for end in ends]
    for end in ends:
        os.close(end)
    os.set_blocking(above[1], False)
    return above[0], above[1]


def _flush() -> None:
    with suppress(BaseException):
        sys.stdout.flush()
