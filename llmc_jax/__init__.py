"""GPT-2 training in JAX with hand-written forward and backward passes and native kernels."""

import sys

__version__ = "0.1.0"


def _uncaught(kind, error, trace) -> None:
    """Ctrl-C is no mistake of the program; anything else is, and has its traceback."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


if sys.argv[:1] == ["-m"]:  # one of our programs is being found, and will import for seconds
    sys.excepthook = _uncaught
