# Every target but `help` first makes the environment, so one command is enough on a fresh machine.
# Needed beforehand: make, git, and a python3 that can make virtual environments (only if uv is not installed).

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON_VERSION ?= >=3.11,<3.14
UV_VERSION := 0.13.8

# A uv that answers is used as it is; otherwise one is put into .uv/ (a name on PATH alone may be a shim to nothing).
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .uv/bin/uv)
PY := .venv/bin/python
TESTS := pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
# Newer than the lock exactly when .venv holds what the lock says.
STAMP := .venv/.installed

.PHONY: help setup demo test coverage faults bench tables lint types

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## make .venv with the locked packages (done once, and again when the lock changes)

demo: $(STAMP) ## the main job: FIA forgets five of ten objects in the tiny world, then a table and a picture
	$(PY) run.py $(ARGS)

test: $(STAMP) ## all tests that this machine can run (ARGS="-k store" picks some)
	OMP_NUM_THREADS=1 $(PY) -m $(TESTS) $(ARGS)

coverage: $(STAMP) ## all tests, and which lines of the project they run
	rm -f .coverage .coverage.*
	OMP_NUM_THREADS=1 $(PY) -m coverage run -m $(TESTS) $(ARGS)
	$(PY) -m coverage combine --quiet
	$(PY) -m coverage report

faults: $(STAMP) ## kill runs at twenty seeded moments, resume them and compare with an unbroken one
	$(PY) tests/faults.py $(ARGS)
	$(PY) -m pytest -m faults

bench: $(STAMP) ## measure masks, pictures, judges, start-up, closed forms (RELEASED=DIR: FIA's own program too)
	$(PY) -m experiments.bench $(if $(RELEASED),--released "$(RELEASED)") $(ARGS)

tables: $(STAMP) ## rebuild results/tables from records: published tables beside measured ones, fronts, figures
	$(PY) -m experiments.rebuild results/tables

lint: $(STAMP) ## ruff: rules and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(STAMP) ## mypy: the types of harness, fia and eval
	$(PY) -m mypy

# Libraries are compiled once, here: where Python is told to write no bytecode, every start would spend ten seconds on it.
$(STAMP): requirements.lock
	@if [ "$(UV)" = .uv/bin/uv ] && [ ! -x $(UV) ]; then \
		python3 -m venv .uv && .uv/bin/python -m pip install --quiet uv==$(UV_VERSION); fi
	$(UV) venv --quiet --allow-existing --python '$(PYTHON_VERSION)' .venv
	$(UV) pip sync --python $(PY) --compile-bytecode --require-hashes requirements.lock
	@touch $@
