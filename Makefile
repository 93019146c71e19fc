# Two commands, both safe to repeat:
#   make train   install, prepare the text, train the quick start and show what came of it
#   make test    install what tests need and run them all
# PYTHON chooses the interpreter the virtual environment is made of.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml $(shell find ffi -type f)

.PHONY: train test lint clean

train: $(VENV)/installed
	$(BIN)/python -m llmc_jax.prepare --source=pystdlib
	$(BIN)/python -m llmc_jax.train --flagfile=configs/quickstart.flags --resume

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python $(SOURCES)
	$(BIN)/pip install --quiet -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/bin/python $(SOURCES)
	$(BIN)/pip install --quiet -e .[dev]
	touch $(VENV)/installed $@

clean:
	rm -rf $(VENV) build
