"""Standard output and error, where nobody may take them any more: a closed pipe, a full disk."""

import os
import sys

from llmc_jax.config import RunStopped


class Gone(BaseException):
    """Who read standard output has gone: there is nobody to do the rest for.

    Like KeyboardInterrupt it is no error that a part of the program could mend.
    """


class Screen:
    """A stream as long as it is taken; afterwards what is written goes nowhere.

    lost: called once, with the error, when it cannot be written any more.
    """

    def __init__(self, stream, lost):
        self._stream, self.lost = stream, lost

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def _give_up(self, error: OSError) -> None:
        # The descriptor, so that what is still in buffers, and C++, write nowhere too.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        self.lost(error)


def protect() -> None:
    """From here on a stream that is closed, cannot be written, or lacks a character, makes no error
    anywhere else.

    Where standard output is lost, print raises Gone, or RunStopped where it was not for want of a
    reader.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # the lowest number first
        if getattr(sys, name) is None:  # closed by who started this
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A sample's letters are none of ASCII's, a prompt's may be half a pair of UTF-16.
            stream.reconfigure(errors="backslashreplace")
    sys.stdout = Screen(sys.stdout, _end)
    sys.stderr = Screen(sys.stderr, lambda error: None)


def outlive() -> None:
    """From here on the work is done also where nothing can be printed; a line on standard error
    says so."""
    sys.stdout.lost = _go_on


def _go_on(error: OSError) -> None:
    print(f"nothing more is printed ({error.strerror}); the work goes on", file=sys.stderr)


def _end(error: OSError) -> None:
    if isinstance(error, BrokenPipeError):
        raise Gone
    raise RunStopped(
        f"standard output cannot be written: {error.strerror}; send it to another place."
    ) from error
