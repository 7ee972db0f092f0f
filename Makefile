# Everything a user or a CI machine calls. Needs python3 (3.11 or newer) with pip, and make.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo ui test soak lint bench lock audit sbom clean

PYTHON ?= python3
PORT ?= 5000
STORE := ediffi-store
BIN := .venv/bin
UV := build/uv/bin/uv
PEERS := build/peers/.ready
READERS := build/peers-reader/.ready
TOOLS := build/audit/.ready
READY := .venv/.ready

help: ## print this list
	@grep -E '^[a-z]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z]+):.*## /  make \1|/' | column -t -s '|'

setup: $(READY) ## make .venv with everything pinned in requirements.lock

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0])'
	@echo "setting up .venv (about 6 GB, once)"
	@$(PYTHON) -m pip install -q --disable-pip-version-check --root-user-action ignore --target build/uv uv

$(READY): requirements.lock pyproject.toml | $(UV)
	@# Compiled once here, imports take half as long: a run starts dozens of processes.
	@$(UV) venv -q --allow-existing --python $(PYTHON) .venv
	@$(UV) pip sync -q --compile-bytecode --python .venv requirements.lock
	@$(UV) pip install -q --python .venv --no-deps --editable .
	@# The demo's drawings are fetched by npm: the system's, else one that comes in a package.
	@command -v npm >/dev/null || $(UV) pip install -q --python .venv -r pipelines/demo/packages/npm.txt
	@$(BIN)/python -m pipelines.demo.fetch
	@$(BIN)/python -m compileall -q ediffi_core pipelines
	@touch $@

demo: $(READY) ## train a small expert tree on emoji, and draw with it (8 to 12 minutes)
	@$(BIN)/ediffi run pipelines/specs/demo.yaml
	@$(BIN)/ediffi sample emoji-scenes "a frog, on a pink background" -n 4 -o demo.png --force
	@echo 'see the record with `make ui`, draw with `$(BIN)/ediffi sample emoji-scenes "a rocket, on a yellow background"`'

ui: $(READY) ## show the demo's record in MLflow, at http://127.0.0.1:$PORT
	@test -f $(STORE)/mlflow.db || { echo "there is no record yet: run make demo first" >&2; exit 2; }
	@echo "the demo: http://127.0.0.1:$(PORT)/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=overview   (Ctrl-C ends it)"
	@$(BIN)/mlflow ui --backend-store-uri sqlite:///$(STORE)/mlflow.db --workers 1 --port $(PORT)

test: $(READY) ## run all tests, offline (a quarter of an hour on 2 cores); with FAST=1 the quick ones alone
	@$(BIN)/pytest -n 2 --dist worksteal $(if $(FAST),-m "not slow and not soak" tests/unit tests/numerics)

soak: $(READY) ## kill pipelines at random moments, run the demo in a bucket that fails (hours)
	@# A database to test MLflow's server before; without it that test is skipped.
	@if [ "$$(id -u)" = 0 ] && ! compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; then \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
			apt-get install -qq --yes --no-install-recommends postgresql; } || \
			echo "PostgreSQL could not be installed: its test is skipped" >&2; fi
	@$(BIN)/pytest -m soak tests

lint: $(READY) ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

$(PEERS): requirements.lock | $(UV)
	@$(UV) venv -q --allow-existing --python $(PYTHON) build/peers
	@$(UV) pip install -q --python build/peers --constraint requirements.lock torch torchvision \
		safetensors diffusers imagen-pytorch
	@touch $@

# Readers want older transformers and another fsspec than we do, so only what they share is pinned.
$(READERS): requirements.lock | $(UV)
	@$(UV) venv -q --allow-existing --python $(PYTHON) build/peers-reader
	@grep -E '^(torch|numpy|pyarrow|ray|pillow|pydantic)==' requirements.lock > build/peers-reader/pins.txt
	@$(UV) pip install -q --python build/peers-reader --constraint build/peers-reader/pins.txt torch \
		safetensors pillow pydantic 'datasets>=4' webdataset mosaicml-streaming 'ray[data]'
	@touch $@

bench: $(READY) $(PEERS) $(READERS) ## run the benchmarks side by side with their peers (half an hour)
	@for script in tests/benchmarks/bench_*.py; do \
		case $$script in *train_step*) python=build/peers/bin/python;; \
			*reader*) python=build/peers-reader/bin/python;; *) python=$(BIN)/python;; esac; \
		$$python $$script; done

lock: $(READY) ## pin requirements.lock anew from pyproject.toml
	@$(UV) pip compile -q --python .venv --group dev --no-annotate --no-header --no-emit-index-url pyproject.toml -o requirements.lock

$(TOOLS): infra/tools.txt | $(UV)
	@$(UV) venv -q --allow-existing --python $(PYTHON) build/audit
	@$(UV) pip install -q --python build/audit -r infra/tools.txt
	@touch $@

audit: $(TOOLS) ## name known holes of what requirements.lock pins, by pip-audit
	@sh infra/audit.sh build/audit/bin/pip-audit

sbom: $(READY) $(TOOLS) ## list what both locks pin in infra/sbom, as CycloneDX
	@PATH="$$PWD/$(BIN):$$PATH" $(BIN)/python infra/sbom.py build/audit/bin/cyclonedx-py npm

clean: ## remove what make made; a store with pipelines of your own stays
	@rm -rf .venv build/uv build/audit build/peers build/peers-reader ediffi.egg-info demo.png .mypy_cache .pytest_cache .ruff_cache
	@rmdir build 2>/dev/null || true
	@find ediffi_core pipelines tests -name __pycache__ -prune -exec rm -rf {} +
	@others=$$(ls $(STORE)/executions/*.latest.json 2>/dev/null | grep -v '/emoji-scenes\.latest' || true); \
	if [ -z "$$others" ]; then rm -rf $(STORE); \
	else echo "$(STORE) stays: it holds pipelines of your own"; fi
