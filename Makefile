# Everything a person may want to run. `make help` lists it.
SHELL := /bin/bash
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
BUF := node_modules/.bin/buf
AXE := node_modules/axe-core/axe.min.js
S3_SERVER := .s3-server/bin/moto_server
STAMP := $(VENV)/.installed
# A machine with a GPU may have a Python with a torch of its own; given here, nothing is installed.
GPU_PYTHON := $(BIN)/python
GPU_SETUP := $(if $(filter $(BIN)/python,$(GPU_PYTHON)),setup)
SEED ?= 0
OUT ?= demo-out
# All services of a laptop share its cores: a thread that waits must not spin.
export OMP_WAIT_POLICY := PASSIVE
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-unit test-slow test-browser test-containers s3-server lint format proto docs-metrics deploy-contract deploy-check bench bench-labeling bench-cord bench-guards bench-canary dashboards clean test-gpu bench-scaling bench-gpu bench-startup

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

setup: $(STAMP) ## make the virtual environment from the lock
$(STAMP): requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch first and by itself, so that a CPU build at hand is taken instead of the CUDA build.
	@echo "installing packages (first time only, about 3 GB) ..."
	@$(BIN)/pip install --quiet "$$(grep '^torch==' requirements.lock)"
	@$(BIN)/pip install --quiet -r requirements.lock
	@$(BIN)/pip install --quiet --no-deps -e .
	@touch $(STAMP)

demo: setup ## run the whole loop on the built-in corpus (SEED=0 OUT=demo-out)
	$(BIN)/andon demo --seed $(SEED) --out $(OUT)

test: setup ## run the tests (ten minutes on two cores)
	$(BIN)/python -m pytest -q -n auto --dist loadfile

test-unit: setup ## run only the unit tests (under two minutes)
	$(BIN)/python -m pytest -q -n auto --dist loadfile tests/unit

test-slow: setup ## run the slow tests: crashes, resumes, small demos, fuzzing (20 minutes)
	$(BIN)/python -m pytest -q -m slow

test-browser: setup $(AXE) ## run the labeling site's tests in a real Chromium
	$(BIN)/python -m pytest -q -m browser tests/browser

test-containers: setup ## build the images and run the local overlay's pods under podman, as root
	$(BIN)/python -m pytest -q -m containers tests/containers

s3-server: $(S3_SERVER) ## install the S3 server that tests of the model store start
$(S3_SERVER): tests/s3-server.lock
	@# An environment of its own: its pins and those of the canary exclude each other.
	@$(PYTHON) -m venv .s3-server
	@.s3-server/bin/pip install --quiet -r tests/s3-server.lock && touch $@

test-gpu: $(GPU_SETUP) ## run the tests that need a GPU (GPU_PYTHON=python3: with that Python's own torch)
	$(GPU_PYTHON) -m pytest -q -m gpu tests/gpu

lint: setup $(BUF) ## check style, types, dependencies, spelling, protos
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell .
	cd protos && ../$(BUF) lint && ../$(BUF) format --diff --exit-code
	./scripts/generate_stubs.sh --check

format: setup $(BUF) ## put code and protos into shape
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	cd protos && ../$(BUF) format --write

proto: setup ## generate andon/api from protos
	./scripts/generate_stubs.sh

docs-metrics: setup ## write docs/metrics.md from the code
	$(BIN)/python -m scripts.metrics_table

deploy-contract: setup ## write what `andon deploy check` knows of settings and metrics from the code
	$(BIN)/python -m scripts.deploy_contract

deploy-check: setup ## check all Kubernetes manifests without a cluster
	$(BIN)/andon deploy check --all

$(BUF) $(AXE) &: package.json
	@command -v npm > /dev/null || { echo "this needs npm (Debian: apt-get install npm)" >&2; exit 1; }
	@npm install --no-package-lock --silent --no-audit --no-fund && touch $(BUF) $(AXE)

bench: setup ## time the work against the peers and print ratios (PEERS_PYTHON: their own environment)
	$(BIN)/python -m benchmarks.run

bench-scaling: setup ## time how cost grows with batch, length, summaries and processes, and write it into the docs
	$(BIN)/python -m benchmarks.scaling

bench-gpu: $(GPU_SETUP) ## time ours, transformers and (where it is installed) TRL on a GPU, and write it into the docs
	$(GPU_PYTHON) -m benchmarks.gpu

bench-startup: setup ## time how soon commands have answered and services are ready (two minutes)
	$(BIN)/python -m benchmarks.startup

bench-labeling: setup ## load the labeling service with 200 labelers, import and export a million comparisons
	$(BIN)/python -m benchmarks.labeling_load
	$(BIN)/python -m benchmarks.labeling_volume

bench-cord: setup ## time how soon a pulled cord is heard and training stands still, and write it into docs/cord.md
	$(BIN)/python -m benchmarks.cord

bench-guards: setup ## plant faults into the built-in loop and count what the guards see (about an hour)
	$(BIN)/python -m benchmarks.guards

bench-canary: setup ## simulate rollouts of candidates of known quality (ten minutes)
	$(BIN)/python -m benchmarks.canary

dashboards: setup ## run a loop under a real Prometheus and draw the Grafana dashboards into docs/images
	ANDON_PICTURES=docs/images $(BIN)/python -m pytest -q -m slow tests/integration/test_dashboards_of_a_run.py

clean: ## remove what the targets made, except the virtual environment
	rm -rf build dist demo-out andon-home .mypy_cache .ruff_cache .pytest_cache .hypothesis
