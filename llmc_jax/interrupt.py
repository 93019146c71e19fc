"""Signals that end a program: at once while it starts, and Ctrl-C never unnoticed.

Python's own way with Ctrl-C is an exception in the line that is being run. While a program starts,
that may be a line that makes another error of it, or one of a callback whose exceptions go nowhere;
and no line is run as long as C++ waits, for other processes perhaps. So until then all threads have
the signals blocked, but one that waits for nothing else.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

FLUSH_S = 1  # how long what was printed may take to be written, before the process ends
AGAIN_S = 0.1  # after which an interruption that went nowhere comes again
OVER = signal.SIGURG  # tells the thread that waits to end; elsewhere it does nothing

_words = ""
_waiting: threading.Thread | None = None


def taken() -> list[int]:
    """The signals that end a run. A SIGHUP that is ignored stays so: that is what nohup is for."""
    hangup = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hangup]


def end_at_once(words: str) -> None:
    """From here on a signal ends the process, with a sentence of its name and `words`, until
    as_before() or take_over(). Nothing is closed or cleared away: what is written then must be such
    that this does no harm. First called before there are other threads, whose signals would be
    theirs."""
    global _words, _waiting
    _words = words
    if not _waiting:
        numbers = [*taken(), OVER]
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        _waiting = threading.Thread(target=_wait, args=[numbers], daemon=True)
        _waiting.start()


def _wait(numbers: list[int]) -> None:
    number = signal.sigwait(numbers)
    if number == OVER:
        return
    # Behind what was printed, unless nobody takes that: a pager, a terminal that was stopped.
    flush = threading.Thread(target=_flush, daemon=True)
    flush.start()
    flush.join(FLUSH_S)
    say(f"{number.name} {_words}")
    os._exit(128 + number)


def as_before() -> None:
    """From here on signals do what they did before end_at_once(). The thread has ended: a process
    that forks is to have none."""
    global _waiting
    if _waiting:
        signal.pthread_kill(_waiting.ident, OVER)
        _waiting.join()
        _waiting = None
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [*taken(), OVER])


def take_over(handler: Callable) -> dict:
    """From here on `handler` gets the signals; what got them before, also before end_at_once()."""
    before = {number: signal.signal(number, handler) for number in taken()}
    as_before()
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


def _flush() -> None:
    with suppress(BaseException):
        sys.stdout.flush()
