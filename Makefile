# walvec: `make` lists what can be made. Nothing needs to be set up first; each target makes what it lacks.

SHELL := /bin/sh
BIN   := .venv/bin
STAMP := .venv/.complete
TRITON := .venv-triton/.complete
# Two workers use both cores of a small machine; each has its own servers. WORKERS=0 runs in one process.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup setup-triton demo test test-triton check bench bench-index bench-triton bench-gpu fuzz chaos sim clean \
        postgres15 chromium promtool

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) postgres15 chromium promtool ## install everything: .venv/ with the walvec command, and what the tests need
	@echo "Ready: $(BIN)/walvec --help, make demo, make test"

demo: $(STAMP) ## real rows, changed live, embedded and searched in a PostgreSQL of its own; KEEP=1 leaves it running
	@$(BIN)/walvec demo $(if $(KEEP),--keep)

test: check postgres15 chromium promtool $(TRITON) ## check, then the tests, on PostgreSQL 15 and 18 and a real Triton
	$(BIN)/pytest -n $(WORKERS) --dist loadgroup -m "not triton"

check: $(STAMP) ## style, types, arrows between packages, links, and the documentation made from code
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/check_links.py
	$(BIN)/python -m cdc.config | diff docs/configuration.md - \
	  || { echo "docs/configuration.md is old: run $(BIN)/python -m cdc.config > docs/configuration.md"; exit 1; }

bench: $(STAMP) ## the figures: decoding, draining a backlog, end to end, latency, memory
	$(BIN)/walvec bench all

bench-index: $(STAMP) ## external indexes: loading, building, freshness; and autotune beside a sweep (BENCH= flags)
	$(BIN)/python -m cdc.bench.index $(BENCH)
	$(BIN)/python -m cdc.bench.autotune

fuzz: $(STAMP) ## feed the decoder broken bytes for FUZZ_SECONDS (120)
	FUZZ_SECONDS=$(or $(FUZZ_SECONDS),120) $(BIN)/pytest tests/fuzz --timeout=0 -s

chaos: $(STAMP) postgres15 ## kill -9 the consumer CHAOS_KILLS (200) times under load, then compare every row
	CHAOS_KILLS=$(or $(CHAOS_KILLS),200) $(BIN)/pytest tests/chaos --timeout=0 -s

sim: $(STAMP) postgres15 ## SIM_EXAMPLES (1000) random histories against an oracle
	SIM_EXAMPLES=$(or $(SIM_EXAMPLES),1000) $(BIN)/pytest tests/sim --timeout=0

setup-triton: $(TRITON) ## install a Triton server into .venv-triton/ (360 MB; no docker, no GPU)

test-triton: $(STAMP) $(TRITON) ## all tests on the real Triton: its faults, its wires, the whole way (make test has the core)
	$(BIN)/pytest tests/triton

bench-triton: $(STAMP) $(TRITON) ## rows/s beside a bare client of the same Triton, padding, recovery after an outage
	$(BIN)/python -m cdc.bench.triton $(BENCH)

bench-gpu: $(STAMP) $(TRITON) ## Triton with a MiniLM-sized model on a GPU, beside the bare model loop
	@! command -v nvidia-smi >/dev/null || GPU=1 tools/setup_triton.sh
	@$(BIN)/python -m cdc.bench.gpu

clean: ## remove what was made here: the environment, caches, builds, the demo's data
	rm -rf .venv .venv-triton .demo .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist
	find cdc inference tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

postgres15 chromium promtool:
	@tools/setup.sh $@

$(STAMP): pyproject.toml constraints.txt tools/setup.sh
	@tools/setup.sh venv
	@touch $@

$(TRITON): constraints.txt tools/setup_triton.sh
	@tools/setup_triton.sh
