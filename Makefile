# `make demo` and `make test` work on a fresh clone; each installs what it needs into .venv first.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Tests of one file share what takes long to make, so that a file is one worker's.
WORKERS ?= 2
IN_WORKERS := --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
COMPILE := $(BIN)/uv pip compile --python-version 3.10 --no-emit-index-url --no-emit-find-links --no-header --no-annotate
export TF_USE_LEGACY_KERAS := 1
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: help install demo test test-slow lint format bench lock golden docs clean
help: ## Say what each target does
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED) ## Create .venv with every locked dependency

$(INSTALLED): requirements-dev.lock setup.py
	@bash .ci/install $(VENV)
	@touch $@

demo: $(INSTALLED) ## The demo world through the whole pipeline to a served feed
	@$(BIN)/shortlist demo

test: $(INSTALLED) ## All tests but the slow ones
	$(BIN)/python -m pytest -m "not slow" $(IN_WORKERS)

test-slow: $(INSTALLED) ## The slow tests
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## Let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED) ## Every benchmark; results are written beside the scripts
	@test -f runs/demo/run.json || $(BIN)/shortlist demo
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

lock: $(INSTALLED) ## Compile what is required into requirements.lock, and with the tools of development into another
	$(COMPILE) --upgrade requirements-dev.in -o requirements-dev.lock
	$(COMPILE) --constraints requirements-dev.lock requirements.in -o requirements.lock

golden: $(INSTALLED) ## Write the golden files of the tests anew
	REGENERATE_GOLDEN=1 $(BIN)/python -m pytest -m "not slow" -k golden

docs: $(INSTALLED) ## Write docs/features.md from the contracts
	$(BIN)/python -m pipeline.feature_docs

clean: ## Remove runs and worlds, not the environment
	rm -rf runs worlds
