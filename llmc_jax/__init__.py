"""GPT-2 training in JAX with hand-written forward and backward passes and native kernels."""

__version__ = "0.1.0"
