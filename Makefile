# make study: set up everything from nothing and run the study in params.yaml. make help lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
S3 := $(VENV)/installed-s3
BENCH := $(VENV)/installed-bench
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONPATH := src
export OMP_WAIT_POLICY ?= passive
export GOMP_SPINCOUNT ?= 1000
export MLFLOW_DISABLE_TELEMETRY := true

.DEFAULT_GOAL := help
.PHONY: help setup study ui test lint format bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv from requirements.lock

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: $$($(PYTHON) --version) found, Python 3.11 or newer needed; name one: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(S3): requirements-s3.lock $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-s3.lock
	@touch $@

study: $(STAMP) ## run the study in params.yaml, track and register it, print the table
	@$(BIN)/python -m finetune study run

ui: $(STAMP) ## serve the MLflow UI on loopback and print the address of the comparison
	@$(BIN)/python -m finetune ui

test: $(STAMP) $(S3) $(BENCH) ## the tests, offline
	$(BIN)/python -m pytest -m "not shared" -n logical --dist loadfile --no-loadscope-reorder --ignore tests/test_killed_dvc.py
	$(BIN)/python -m pytest tests/test_killed_dvc.py # alone, as it holds endings to their 10 seconds

lint: $(STAMP) ## ruff, mypy, import rule
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## let ruff format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(BENCH): $(STAMP) requirements-bench.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-bench.lock
	@touch $@

bench: $(BENCH) ## preparing and training beside a plain loop and timm, some 15 minutes; writes benchmarks/results/
	$(BIN)/python -m benchmarks

clean: ## remove the environment, stores, runs and results (not data, not the tracking database)
	rm -rf $(VENV) prepared sheets plans runs evaluations comparison report models/backbone.safetensors .finetune
