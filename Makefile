# Every verb of the project. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
# what a developer may add: make test TESTS=tests/bench, make demo TORCH=cpu,
# make bench BENCH="--only speed --rounds 3"
TESTS ?=
BENCH ?=
TORCH ?=
ifeq ($(TORCH),cpu)
PIP_FLAGS += --extra-index-url https://download.pytorch.org/whl/cpu
endif
BIN := $(VENV)/bin
PYTEST := $(BIN)/pytest --numprocesses auto --maxprocesses 4

.PHONY: help demo test slow shown narrow lint format types docs site bench clean

help:  ## list the verbs
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(VENV)/.demo  ## install, then compare thirteen methods on a synthetic task (3 to 5 minutes)
	@$(BIN)/peftlab compare

test: $(VENV)/.dev  ## install, then run the tests (5 to 7 minutes)
	@$(PYTEST) --dist loadscope -m "not slow and not shown" $(TESTS)

slow: $(VENV)/.dev  ## the tests of whole commands, and of the page in a browser (3 minutes)
	@$(PYTEST) --dist loadscope -m slow $(TESTS)

shown: $(VENV)/.dev  ## run what README, docs and examples show (two minutes)
	@$(PYTEST) -m shown tests/cli tests/examples tests/experiments

narrow: $(VENV)/.dev  ## test the kernels as processors with narrower vectors have them (two minutes)
	@$(BIN)/python tests/engine/narrow.py

lint: $(VENV)/.dev  ## rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/.dev  ## mend what lint can mend
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

types: $(VENV)/.dev  ## strict type check of src
	@$(BIN)/mypy

docs: $(VENV)/.dev  ## write the generated pages of docs/ anew
	@$(BIN)/python docs/generate.py

site: $(VENV)/.docs  ## build the documentation as a site into site/ (a warning is an error)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.dev  ## speed and memory against HF PEFT with Trainer (two hours; needs GLUE's files)
	@$(BIN)/python benchmarks/speed.py $(BENCH)

clean:  ## remove the environment and every cache
	@rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "peftlab needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
	         "name another: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	@echo "Installing peftlab into $(VENV), once. It downloads from the package index: torch (200 MB"
	@echo "where a CPU build is served, about 3 GB with CUDA; TORCH=cpu asks PyTorch's own index for"
	@echo "the small one), transformers and the other libraries (200 MB), the model minilm (85 MB)."
	@$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.demo
	@echo "Installing the developers' tools into $(VENV), once: pytest, peft, bitsandbytes, ruff, mypy."
	@$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --editable '.[demo,dev]'
	@touch $@

$(VENV)/.docs: pyproject.toml | $(VENV)/.demo
	@echo "Installing mkdocs-material into $(VENV), once."
	@$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --editable '.[demo,docs]'
	@touch $@
