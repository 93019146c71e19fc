# Three commands, all safe to repeat:
#   make train      install, prepare the text, train the quick start and show what came of it
#   make test       install what tests need and run them all
#   make sanitize   check the C++ kernels and, on an emulator, the CUDA kernels, built so that a
#                   wrong access stops them, against plain arithmetic (make tsan: the C++ kernels
#                   for races between threads)
# PYTHON chooses the interpreter the virtual environment is made of.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CMAKE := $(or $(shell command -v cmake 2>/dev/null),$(BIN)/cmake)
# With the CUDA kernels for the host, and ptxas's warnings as errors.
TEST_BUILD := -C cmake.define.LLMC_EMULATED=ON -C cmake.define.LLMC_CUDA_STRICT=ON
SOURCES := pyproject.toml $(shell find ffi -type f)

.PHONY: train test sanitize tsan lint clean

train: $(VENV)/installed
	$(BIN)/python -m llmc_jax.prepare --source=pystdlib
	$(BIN)/python -m llmc_jax.train --flagfile=configs/quickstart.flags --resume

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

sanitize: SANITIZE := address,undefined
tsan: SANITIZE := thread
sanitize tsan: $(CMAKE)
	$(CMAKE) -S ffi/tests -B build/$@ -DSANITIZE=$(SANITIZE)
	$(CMAKE) --build build/$@ --parallel 4
	for test in build/$@/*_test; do $$test || exit 1; done

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python $(SOURCES)
	$(BIN)/pip install --quiet -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/bin/python $(SOURCES)
	$(BIN)/pip install --quiet -e .[dev] $(TEST_BUILD)
	touch $(VENV)/installed $@

$(BIN)/cmake: $(VENV)/installed-dev

clean:
	rm -rf $(VENV) build
