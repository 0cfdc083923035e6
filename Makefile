# Everything is kept in .venv and the root folder (data/).
.DEFAULT_GOAL := help
# Recipes name .venv relative to this file's folder, where make runs them, with or without -C.
VENV := .venv/bin

.PHONY: help setup demo up test test-fast stress bench check format readme constraints clean

help: ## Show what there is to make
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

setup: ## Make .venv with all packages and jars (does nothing when it is up to date)
	@deploy/setup

demo: setup ## Land the sample invoices, run the main job, show the result
	@$(VENV)/invoice-platform demo

up: setup ## Start the warm Spark and the Dagster UI, with sensors and schedules on; Ctrl-C ends it all
	@exec $(VENV)/invoice-platform up

test: setup ## Run all tests
	@$(VENV)/pytest

test-fast: setup ## Run the tests that start no process, wait for no clock and take no long time
	@$(VENV)/pytest -m "not slow"

stress: setup ## Land files for MINUTES (5) while all kinds of things fail, then look for what is lost; SEED=N repeats one
	@$(VENV)/python -m invoice_platform_tests.stress --minutes $(or $(MINUTES),5) $(if $(SEED),--seed $(SEED))

bench: setup ## Measure everything (37 minutes on 2 cores) and write docs/benchmarks.md; SMALL=1: tiny, elsewhere; ONLY="NAME …": some of it
	@$(VENV)/python -m benchmarks $(if $(SMALL),--small) $(ONLY)

check: setup ## Check format, lint and types
	@$(VENV)/ruff format --check
	@$(VENV)/ruff check
	@$(VENV)/basedpyright

format: setup ## Format, and mend what the linter can mend
	@$(VENV)/ruff format
	@$(VENV)/ruff check --fix

readme: setup ## For maintainers: bring the README's tables of sources and sinks up to date
	@$(VENV)/python -m invoice_platform.connectors README.md

constraints: ## For maintainers: pin the newest versions that pyproject.toml allows
	@set -e; work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT INT TERM; \
	$${PYTHON:-python3} -m venv "$$work"; \
	"$$work/bin/python" -m pip install -q --disable-pip-version-check uv; \
	echo '# Exact versions for every supported Python, development tools included. Made by `make constraints`.' >"$$work/constraints.txt"; \
	"$$work/bin/uv" pip compile -q --universal --python-version 3.10 --no-python-downloads --upgrade --extra dev \
		--no-header --no-emit-index-url --annotation-style line pyproject.toml >>"$$work/constraints.txt"; \
	cp "$$work/constraints.txt" constraints.txt

clean: ## Remove .venv; data stays
	@rm -rf .venv
