# `make help` lists the targets. Needed beforehand: make and Python 3.11 or newer.

SHELL := /bin/sh
.DEFAULT_GOAL := help

# PYTHON=/path/to/python chooses the interpreter, VENV=dir the place of the environment.
PYTHON ?= $(firstword $(shell sh .ci/pythons))
VENV   ?= .venv
BIN    := $(VENV)/bin
# Extra arguments: make test ARGS='-k reload -x'
ARGS   ?=
# Tests wait more than they compute: two run side by side for each processor, at most four. WORKERS=0 for
# one after another.
WORKERS ?= $(shell if [ "$$(getconf _NPROCESSORS_ONLN)" -ge 2 ]; then echo 4; else echo 2; fi)

# The tests start hundreds of programs: each would compile the package again.
export PYTHONDONTWRITEBYTECODE :=

# The newest pip is not needed, but 25.1 is the first that knows dependency groups.
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then echo "make: no Python 3.11 or newer was found; PYTHON=/path/to/python names one" >&2; exit 1; fi
	@"$(PYTHON)" -m venv $(VENV) || { \
	  rm -rf $(VENV); \
	  echo "make: $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.pip: | $(BIN)/python
	@$(PIP) install --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.demo: pyproject.toml | $(VENV)/.pip
	@echo "installing pgmonkey into $(VENV)"
	@$(PIP) install --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.pip
	@echo "installing pgmonkey and its development tools into $(VENV)"
	@$(PIP) install --editable '.[demo]' --group dev
	@touch $@ $(VENV)/.demo

.PHONY: run
run: $(VENV)/.demo ## the demonstration: a real PostgreSQL, three databases that change under load
	@$(BIN)/pgmonkey demo $(ARGS)

.PHONY: setup
setup: $(VENV)/.dev ## the virtual environment with the development tools

.PHONY: test
test: $(VENV)/.dev ## the tests, on a real PostgreSQL
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

# Nearly all of their tests run in this process; those that use a PostgreSQL are left out.
FAST := tests/config tests/cli tests/telemetry tests/test_errors.py tests/test_package.py

.PHONY: test-fast
test-fast: $(VENV)/.dev ## the tests of configuration, commands and pure logic: less than a minute
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m 'serverless and not slow and not timing' $(FAST) $(ARGS)

.PHONY: test-lowest
test-lowest: ## each command and each framework with the lowest versions, on the oldest and the newest Python
	@.ci/lowest

.PHONY: test-all
test-all: ## the tests on every Python from 3.11 to 3.14 that is found
	@pythons="$$(sh .ci/pythons)"; \
	if [ -z "$$pythons" ]; then echo "make: no Python 3.11 or newer was found" >&2; exit 1; fi; \
	failed=; \
	for python in $$pythons; do \
	  version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	  echo "== Python $$version"; \
	  $(MAKE) --no-print-directory test PYTHON="$$python" VENV=".venvs/$$version" || failed="$$failed $$version"; \
	done; \
	if [ -n "$$failed" ]; then echo "failed on Python$$failed" >&2; exit 1; fi

.PHONY: lint
lint: $(VENV)/.dev ## ruff: rules and formatting; the generated sync code is current
	@$(BIN)/ruff check $(ARGS)
	@$(BIN)/ruff format --check
	@$(BIN)/python .ci/sync_code --check

.PHONY: sync-code
sync-code: $(VENV)/.dev ## write the sync half of the pool from the async half
	@$(BIN)/python .ci/sync_code

.PHONY: format
format: $(VENV)/.dev ## let ruff format the code and mend what it can
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

.PHONY: types
types: $(VENV)/.dev ## mypy --strict on the package and the test kit
	@$(BIN)/mypy

.PHONY: layers
layers: $(VENV)/.dev ## the import contracts of pyproject.toml
	@$(BIN)/lint-imports --no-cache

.PHONY: docs
docs: $(VENV)/.dev ## the documentation as a site, every warning an error
	@SITE_NAME="pgmonkey $$($(BIN)/python -c 'from pgmonkey.version import __version__; print(__version__)')" \
	 $(BIN)/zensical build --strict --clean

.PHONY: docs-reference
docs-reference: $(VENV)/.dev ## write the generated pages of the documentation again
	@$(BIN)/python -m tests.docs.generated

.PHONY: bench
bench: $(VENV)/.dev ## the benchmarks, against the alternatives in the same run
	@$(BIN)/python -m benchmarks $(ARGS)

# BEFORE=file: another run that was kept. `make bench` keeps the last one, and the one before it.
BEFORE ?= build/bench-before.json

.PHONY: bench-compare
bench-compare: $(VENV)/.dev ## the last benchmarks beside those before them, or BEFORE=file
	@$(BIN)/python -m benchmarks --compare $(BEFORE)

.PHONY: soak
soak: $(VENV)/.dev ## SOAK_ROTATIONS (1000) rotations under load, kills and forks; SOAK_FUZZ_SECONDS (60) of fuzzing; SOAK_TOKEN_SECONDS (60) of tokens; SOAK_FLEET_SECONDS (60) of a fleet on a small server; a Patroni failover
	@SOAK_ROTATIONS="$${SOAK_ROTATIONS:-1000}" SOAK_FUZZ_SECONDS="$${SOAK_FUZZ_SECONDS:-60}" \
	 SOAK_TOKEN_SECONDS="$${SOAK_TOKEN_SECONDS:-60}" SOAK_FLEET_SECONDS="$${SOAK_FLEET_SECONDS:-60}" $(BIN)/python -m pytest tests/soak --timeout 0 $(ARGS)

.PHONY: django-suite
django-suite: $(VENV)/.dev ## Django's own tests of a backend through our engine: minutes; ARGS='--plain' through Django's
	@$(BIN)/python -m tests.soak.django_suite $(ARGS)

.PHONY: sqlalchemy-suite
sqlalchemy-suite: $(VENV)/.dev ## SQLAlchemy's own tests of its PostgreSQL dialect, with its pool and with handles; ARGS='-k JSON'
	@$(BIN)/python -m tests.soak.sqlalchemy_suite $(ARGS)

.PHONY: clean
clean: ## remove what the other targets made
	@rm -rf .venv .venvs build dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .cache .hypothesis .coverage htmlcov
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
