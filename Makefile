# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUNS := $(VENV)/.runs
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable

# The demo needs no server and uses none that is running: everything it makes is below .mzsane/.
EMBEDDED := env -u PREFECT_API_URL -u PREFECT_PROFILE -u MLFLOW_TRACKING_URI PREFECT_HOME=$(CURDIR)/.mzsane/prefect \
	MZSANE_ROOT=$(CURDIR)/.mzsane/store

# One process a core; what is shared among them is named in tests/conftest.py.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder

.PHONY: help setup demo test test-all lint docs up down status clean
.DEFAULT_GOAL := help


help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## create .venv and install everything, pinned by constraints.txt

$(STAMP): $(RUNS)
	@echo "installing what tests and the stack need"
	@$(PIP) '.[tracking,stack,dev]'
	@touch $@

# The demo needs neither servers nor tools, and installs in less time.
$(RUNS): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): about two minutes the first time"
	@$(PIP) '.'
	@touch $@

demo: $(RUNS) ## run the zoo-composition ablation on embedded defaults
	@mkdir -p .mzsane/prefect
	@$(EMBEDDED) $(BIN)/mzsane ablate demo

test: $(STAMP) ## run the tests (minutes)
	@$(PYTEST)

test-all: $(STAMP) ## run all tests, those that need minutes, a browser or a real S3 endpoint too
	@$(PYTEST) -m ''

lint: $(STAMP) ## check style, types and layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

up: $(STAMP) ## start the local stack: Prefect, MLflow, S3, work pool, worker
	@$(BIN)/python -m infra.stack up

down: $(STAMP) ## stop the local stack
	@$(BIN)/python -m infra.stack down

status: $(STAMP) ## tell what of the local stack runs
	@$(BIN)/python -m infra.stack status

docs: $(STAMP) ## build the site of the documentation into site/, strictly
	@$(PIP) '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo site/index.html

clean: ## remove what the demo and the stack have made
	@rm -rf .mzsane
