# make demo   set up, then distill a student from a digits teacher and say where the report is
# make demo-hybrid  the same with a GAN that learns from 10 real digits a class, a hybrid dataset, and scores
# make test   set up what tests need, lint, run the fast suite (PYTEST_OPTIONS=--runslow for all of it)
# make lint   ruff and mypy
# make clean  remove the environment and caches; runs/ stays
#
# PYTHON=python3.12 chooses the interpreter, PIP_OPTIONS="--index-url ..." adds options to pip install.

.DELETE_ON_ERROR:
.PHONY: demo demo-hybrid test lint clean

# An empty result is reported by the rule that makes .venv, so that `make clean` needs no Python.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v "$$p"; break; }; done)
PIP_OPTIONS ?=
PYTEST_OPTIONS ?=
BIN := .venv/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) -c constraints.txt

demo: .venv/.installed
	$(BIN)/python -m synthkd distill configs/digits.yaml out=runs/demo

demo-hybrid: .venv/.installed
	$(BIN)/python -m synthkd distill configs/hybrid_cgan_digits.yaml out=runs/demo-hybrid

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(PYTEST_OPTIONS)

lint: .venv/.installed-test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check --quiet .
	$(BIN)/python -m mypy

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

.venv/bin/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "synthkd needs Python 3.11 or newer, found: $(or $(PYTHON),none); install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@"$(PYTHON)" -m venv .venv || { \
		rm -rf .venv; echo "$(PYTHON) cannot make a virtual environment (on Debian: apt-get install python3-venv)" >&2; exit 1; }

# The stamps lie inside .venv, so that they go with it; what was installed is as old as the files that chose it.
.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) -e .
	@touch $@

.venv/.installed-test: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) -e '.[test]'
	@touch .venv/.installed $@
