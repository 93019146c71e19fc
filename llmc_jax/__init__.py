"""GPT-2 training in JAX with hand-written forward and backward passes and native kernels."""

import sys

from llmc_jax import interrupt

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"]:  # one of our programs is being found, and will import for seconds
    interrupt.end_at_once("while the program starts: nothing is done yet; start it again")
    sys.unraisablehook = interrupt.unraisable
