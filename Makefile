# The commands of a user. Targets can run in any order and any number of times. Only a change of requirements.lock or
# pyproject.toml installs anything again.

VENV := .venv
STAMP := $(VENV)/.installed
HALF := $(VENV)/.installing
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 && echo $$p && break; done)

# Ports of `make ui` and `make services`; both listen on loopback only.
MLFLOW_PORT ?= 5000
PREFECT_PORT ?= 4200
# Port of `make serve`.
SERVE_PORT ?= 5001
SWITCH ?= on
# Folder of `make fashion`.
FASHION ?= /usr/share/datasets/fashion-mnist

SHELL := /bin/bash
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
unexport PYTHONHOME PYTHONPATH
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export MLFLOW_PORT PREFECT_PORT

.DEFAULT_GOAL := help
.PHONY: help install pipeline fashion ablations test faults test-gpu lint docs ui services nightly serve deps clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(STAMP) ## create .venv and install the pinned dependencies

# A killed installation leaves $(HALF), and the next call starts again: pip does not detect a half-written package.
$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed and was not found; name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@if [ -e $(HALF) ] || [ ! -x $(VENV)/bin/pip ]; then $(PYTHON) -m venv --clear $(VENV); fi
	@touch $(HALF)
	python -m pip install --quiet -c requirements.lock "$$(grep '^torch==' requirements.lock)"
	python -m pip install --quiet -r requirements.lock
	python -m pip install --quiet --no-deps --no-build-isolation -e .
	@rm $(HALF)
	@touch $@

pipeline: $(STAMP) ## train, sample and evaluate what is out of date; then show the metrics
	bigr check
	dvc repro
	@echo && bigr metrics

fashion: $(STAMP) ## the same on Fashion-MNIST, which FASHION names: docs/fashion-mnist.md
	@test -e "$(FASHION)" || { echo "$(FASHION) does not exist. On Debian and Ubuntu: apt-get install dataset-fashion-mnist. Elsewhere, put the four files of Fashion-MNIST (train-images-idx3-ubyte.gz …) into a folder: make fashion FASHION=/path/to/it" >&2; exit 1; }
	@mkdir -p data && ln -sfn "$(abspath $(FASHION))" data/fashion-mnist
	bigr recipe fashion-mnist
	@$(MAKE) --no-print-directory pipeline

ablations: $(STAMP) ## repeat the paper's tables in miniature: docs/ablations.md
	python -m flows.study

# One process more than there are cores, four at most (tests/conftest.py). The tests of a file stay in one process.
test: $(STAMP) ## run the test suite, all but `make faults` and `make test-gpu`
	OMP_NUM_THREADS=1 python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not faults"

faults: $(STAMP) ## run the tests that kill processes, fill disks and damage files: docs/reliability.md
	OMP_NUM_THREADS=1 python -m pytest -m faults -rs tests/faults

test-gpu: $(STAMP) ## run the tests that need a GPU, and print what they measured
	@python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { \
		echo "There is no GPU: torch sees no CUDA device here, and none of these tests can run" >&2; exit 1; }
	python -m pytest -m gpu -rs tests/test_gpu.py

lint: $(STAMP) ## check style and types
	ruff check .
	ruff format --check .
	mypy

docs: $(STAMP) ## build the documentation as a site, in site/, and check its links
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

ui: $(STAMP) ## start MLflow, with the records of all runs, on loopback port 5000 (MLFLOW_PORT)
	@python -m flows.services mlflow

services: $(STAMP) ## start Prefect's server, MLflow and a worker together; Ctrl-C stops them
	@python -m flows.services

nightly: $(STAMP) ## let the services retrain every night; make nightly SWITCH=off: no longer
	@python -m flows.nightly $(SWITCH)

serve: $(STAMP) ## serve the champion (bigr promote): images for labels, on loopback port 5001 (SERVE_PORT)
	bigr serve --port $(SERVE_PORT)

deps: $(STAMP) ## update dvc.yaml: the code that each stage imports
	python -m bigr.pipeline.closure --write

# Images of the user in data/ stay. dvc.lock and DVC's cache stay, and with them MLflow's records: every output that they name keeps its run.
clean: ## remove outputs of the pipeline and the services, but not .venv, DVC's cache, MLflow's records, .credentials
	@pid=$$(cat .prefect/services.pid 2>/dev/null) && ps -o args= -p "$$pid" | grep -q honcho && { \
		echo "The services run: stop them first, with Ctrl-C where \`make services\` was started" >&2; exit 1; } || true
	rm -rf data/{dataset,shards,codes,text} data/.{dataset,shards,codes,text}.* data/shards-report.json models outputs checkpoints .prefect .dvc/tmp/flows dvc_plots
