"""Programs that measure. A package, so that this folder, and no other package of so common a name
that happens to be installed, is what `python -m benchmarks.` runs."""
