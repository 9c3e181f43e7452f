# The environment is made when it is missing, or when what it is made from has changed.
# `make test VENV=/path/to/venv` uses (and keeps up to date) another one.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
WORKERS ?= 2

.PHONY: demo test lint bench
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/python -m agents demo

test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m benchmarks.operator
	$(BIN)/python -m benchmarks.tasks
	$(BIN)/python -m benchmarks.separation
	$(BIN)/python -m benchmarks.workers
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.learning t-maze cartpole memory-s9 memory-s11
	$(BIN)/python -m benchmarks.retrieval
	$(BIN)/python -m benchmarks.probe
	$(BIN)/python -m benchmarks.unlearning

# Without compiling: Python does that for what is imported, which is a small part of what is installed; and it keeps what
# it compiled, also where the environment says not to.
unexport PYTHONDONTWRITEBYTECODE
$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (a few minutes the first time) ..."
	@$(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check -c constraints.txt -e ".[app,box2d,popgym,dev]"
	@touch $(READY)
