# Tokenloom. `make` alone prints this list.
# The environment is .venv, from constraints.txt; pip's own variables (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, …)
# choose where packages come from, the CPU or CUDA build of torch included.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
READY_EMOJI := $(VENV)/.ready-emoji

# What one process has compiled all others read, wherever this runs: tests and runs start dozens of them.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo demo-emoji test test-all test-fast lint readme clean

help: ## print this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Tokenloom needs Python 3.11 or newer; give another with PYTHON=…")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (once, a few minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

$(READY_DEV): $(READY)
	@echo "adding the tools for tests and lint"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(READY_EMOJI): $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[emoji]'
	@touch $@

demo: $(READY) ## set up, then train, evaluate and register a generator of handwritten digits
	@$(BIN)/tokenloom run digits_var

demo-emoji: $(READY_EMOJI) ## set up, then train a generator of small pictures in colour that is asked in words
	@$(BIN)/tokenloom run emoji_var

test: $(READY_DEV) ## set up, then run the tests, three files at a time (10 minutes at most on two free cores); names the slowest
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=15 --durations-min=1

test-all: $(READY_DEV) ## all tests, those of many minutes too, then every recipe end to end (goes on where it was)
	@$(BIN)/python -m pytest -m ''
	@$(BIN)/python benchmarks/recipes.py --table docs/recipes.md

test-fast: $(READY_DEV) ## the tests that take seconds
	@$(BIN)/python -m pytest -m 'not slow and not ray and not long'

lint: $(READY_DEV) ## ruff (rules and format) and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@mkdir -p .venv/pkg/tokenloom && ln -sfn $(addprefix $(CURDIR)/,flows tasks models configs) .venv/pkg/tokenloom/
	@$(BIN)/mypy

readme: $(READY_DEV) ## refresh the pages that come from the code: method table, sizes, file tree
	@$(BIN)/python docs/readme.py

clean: ## remove the environment and caches (not .tokenloom, where your runs are)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
