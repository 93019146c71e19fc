"""Where training text comes from, one module a source."""
