"""What is printed where nobody takes it: the right end, and nothing that nobody asked for."""

import io
import os
import sys

import pytest

from llmc_jax import program, screen
from llmc_jax.config import BadInput, RunStopped


@pytest.fixture
def protect(monkeypatch):
    """A function that protects these streams, until the test ends; gives standard error."""

    def of_these(*, stdin=None, stdout=None, stderr=None):
        for name, stream in dict(stdin=stdin, stdout=stdout, stderr=stderr).items():
            monkeypatch.setattr(sys, name, stream)
        screen.protect()
        return stderr

    return of_these


def broken_pipe() -> io.TextIOWrapper:
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


def speak() -> int:
    for line in range(1000):
        print(line, flush=True)
    return 0


def test_a_program_ends_quietly_with_its_reader(protect):
    told = protect(stdout=broken_pipe(), stderr=io.StringIO())
    assert program.ended(speak) == 141
    assert told.getvalue() == ""
    print("and what is printed later is no error", flush=True)
    assert os.readlink(f"/proc/self/fd/{sys.stdout.fileno()}") == "/dev/null"


def test_what_is_only_in_the_buffer_ends_it_too(protect):
    protect(stdout=broken_pipe())
    assert program.ended(lambda: print("a line")) == 141


def test_work_worth_doing_goes_on_without_a_reader(protect):
    told = protect(stdout=broken_pipe(), stderr=io.StringIO())
    screen.outlive()
    assert program.ended(speak) == 0
    assert told.getvalue() == "nothing more is printed (Broken pipe); the work goes on\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_one_sentence(protect):
    with open("/dev/full", "w") as full:
        told = protect(stdout=full, stderr=io.StringIO())
        assert program.ended(speak) == 1
    told = told.getvalue()
    assert told.startswith("error: standard output cannot be written: No space left on device;")
    assert told.count("\n") == 1


def test_lost_standard_error_is_no_error(protect):
    protect(stdout=io.StringIO(), stderr=broken_pipe())

    def remark():
        print("remark", file=sys.stderr, flush=True)
        print("result")

    assert program.ended(remark) is None and sys.stdout.getvalue() == "result\n"


def test_letters_that_a_stream_has_not_are_written_as_numbers(protect):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    protect(stdout=stream)
    assert program.ended(lambda: print("na\u00efve \udcff")) is None
    assert stream.buffer.getvalue() == b"na\\xefve \\udcff\n"


def test_closed_streams_are_empty_ones(protect):
    """As `<&- >&- 2>&-` leaves them."""
    protect()
    assert not sys.stdin.isatty() and sys.stdin.readline() == "" and not sys.stdout.isatty()
    assert program.ended(speak) == 0


def import_that_was_interrupted() -> ImportError:
    error = ImportError("initialization failed")
    error.__cause__ = KeyboardInterrupt()
    return error


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (BadInput("--flag is wrong."), 2, "error: --flag is wrong.\n"),
        (RunStopped("the disk is full."), 1, "error: the disk is full.\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (import_that_was_interrupted(), 130, "interrupted\n"),
    ],
)
def test_how_a_program_ends(error, status, told, capsys):
    def main():
        raise error

    assert program.ended(main) == status and capsys.readouterr().err == told
