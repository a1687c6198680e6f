# Two commands for a fresh machine with Python 3.11+ and make: `make demo` and `make test`.
# Everything is installed into .venv; nothing else on the machine is touched.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
# TORCH=1 adds PyTorch to the tests (the pinned CPU build), RAY=1 Ray; without them theirs skip.
TORCH  ?=
RAY    ?=

.PHONY: help demo test check lint types contracts quick fuzz containers residue bench clean

help:
	@echo "make demo    train a small Keras model on augmented batches (about two minutes)"
	@echo "make test    all tests; TORCH=1 RAY=1 with PyTorch and Ray as well"
	@echo "make check   lint, types, import contracts, quick tests"
	@echo "make residue 200 rounds of kill -9 against everything, and a look at what is left"
	@echo "make fuzz    hostile peers on every socket, FRAMES=100000 on each (a quarter of an hour)"
	@echo "make containers  docker-compose.yml on the Docker engine that answers (three minutes)"
	@echo "make bench   ours beside its peers, as a table in bench-table.md (half an hour; TORCH=1)"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "augserver needs Python 3.11 or newer; name one: make PYTHON=python3.13 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade 'pip>=25.1'

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(PIP) install -e '.[server,tensorflow]'
	@touch $@

$(VENV)/.check: pyproject.toml | $(BIN)/python
	$(PIP) install -e '.[server]' --group dev
	@touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(PIP) install -e '.[server,tensorflow,jax,bench]' --group dev
	@touch $@ $(VENV)/.check $(VENV)/.demo

$(VENV)/.torch: pyproject.toml | $(VENV)/.test
	$(PIP) install -e '.[torch]'
	@touch $@

$(VENV)/.ray: pyproject.toml | $(VENV)/.test
	$(PIP) install -e '.[ray]'
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/augserver demo

test: $(VENV)/.test $(if $(TORCH),$(VENV)/.torch) $(if $(RAY),$(VENV)/.ray)
	$(BIN)/pytest

check: lint types contracts quick

lint: $(VENV)/.check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.check
	$(BIN)/mypy

contracts: $(VENV)/.check
	$(BIN)/lint-imports

quick: $(VENV)/.check
	$(BIN)/pytest -m 'not slow' tests/proto tests/client tests/server

# FRAMES on each socket; seeds are printed, and `fuzz_rounds.py FRAMES SEED` repeats them.
FRAMES ?= 100000
fuzz: $(VENV)/.test
	$(BIN)/python tests/system/fuzz_rounds.py $(FRAMES)

# OpenCV, torch (TORCH=1) and grain are peers; whoever is missing is left out with a word.
bench: $(VENV)/.test $(if $(TORCH),$(VENV)/.torch)
	$(PIP) install -e '.[bench]' --group bench
	$(BIN)/python tests/bench/table.py bench-table.md
	$(BIN)/python tests/bench/control_plane.py
	$(BIN)/python tests/bench/memory_flat.py

# On whatever Docker engine answers.
containers: $(VENV)/.test
	$(BIN)/pytest tests/system/test_compose.py

residue: $(VENV)/.check
	$(BIN)/python tests/support/residue_rounds.py 200

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
