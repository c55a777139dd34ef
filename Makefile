# Everything a developer runs; `make help` lists it. The virtual environment .venv is made when first needed.
.DEFAULT_GOAL := help
.NOTPARALLEL:

PYTHON ?= python3
BIN := .venv/bin
DEV := .venv/.installed-dev
# Where no bytecode may be kept, every child process of a test compiles all of crosstie again.
unexport PYTHONDONTWRITEBYTECODE
# The demo needs no more than the library and its drivers; where the development set is there, that will do.
RUNTIME := $(if $(wildcard $(DEV)),$(DEV),.venv/.installed)

.venv/.installed: EXTRAS := mysql,postgres
$(DEV): EXTRAS := dev
.venv/.installed $(DEV): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "crosstie needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1)." \
			"Name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "installing crosstie[$(EXTRAS)] into .venv"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]'
	@touch $@

.PHONY: help demo test lint format types storm bench bench-orm bench-outbox bench-sagas bench-audit package clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile
	@echo "  ARGS='...' passes more arguments to pytest or the benchmark; PYTHON=... chooses the interpreter for .venv"

demo: $(RUNTIME)  ## two databases stay consistent through a crash, in under a minute
	@$(BIN)/python examples/demo.py

test: $(DEV)  ## all tests, on every database server that can be reached
	@$(BIN)/python -m pytest -n auto --dist loadgroup $(ARGS)

lint: $(DEV)  ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "some files are not formatted: run make format" >&2; exit 1; }

format: $(DEV)  ## let ruff sort imports and format
	@$(BIN)/ruff check --quiet --select I --fix .
	@$(BIN)/ruff format .

types: $(DEV)  ## mypy, strict
	@$(BIN)/mypy

storm: $(DEV)  ## the long form of the randomised tests with faults
	@CROSSTIE_STORM=long $(BIN)/python -m pytest -n auto --dist loadgroup -m storm --timeout 3600 $(ARGS)

bench: $(DEV)  ## run every benchmark
	@test -n "$(wildcard benchmarks/*.py)" || { echo "this version has no benchmarks" >&2; exit 1; }
	@set -e; for script in $(sort $(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python "$$script"; done

bench-orm:  ## compare the ORM with others, which are installed into .venv-bench
	@test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -e '.[mysql,postgres]' -r benchmarks/requirements.txt
	@.venv-bench/bin/python benchmarks/orm.py $(ARGS)

bench-outbox:  ## compare the outbox with queues, which are installed into .venv-bench
	@test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -e '.[mysql,postgres,redis]' -r benchmarks/requirements.txt
	@.venv-bench/bin/python benchmarks/outbox.py $(ARGS)

bench-sagas:  ## compare sagas with what protects two writes elsewhere, installed into .venv-bench
	@test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -e '.[mysql,postgres,redis]' -r benchmarks/requirements.txt
	@.venv-bench/bin/python benchmarks/sagas.py $(ARGS)

bench-audit:  ## compare audits with other ways between two databases, which are installed into .venv-bench
	@test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -e '.[mysql,postgres]' -r benchmarks/requirements.txt
	@.venv-bench/bin/python benchmarks/audit.py $(ARGS)

package: $(DEV)  ## build sdist and wheel into dist/, and try the wheel in a fresh environment
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation
	@CROSSTIE_TEST_DIST=dist $(BIN)/python -m pytest -q tests/packaging/test_wheel.py

clean:  ## remove the environment and everything that was built
	@rm -rf .venv .venv-bench build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find orm outbox sagas workers tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
