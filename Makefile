# Every target sets up what it needs in .venv; nothing is installed outside of it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROJECT := $(VENV)/.project
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt

# Which build of torch: none named is that of the package index (on Linux with CUDA, several GB); cpu, auto, or any other
# that uv knows. It counts when the environment is made.
TORCH_BACKEND ?=

# A run of a few minutes on two cores; `make up UP="--env relocate --actors 32"` runs anything else.
UP ?= --env pen --actors 2 --num-env-steps 10000 --learner.evaluate-every-env-steps 5000

.PHONY: up test test-fast lint bench bench-peers clean

up: $(PROJECT)
	$(BIN)/launcher up $(UP)

test: $(INSTALLED)
	$(BIN)/pytest -n 2 --dist worksteal

test-fast: $(INSTALLED)
	$(BIN)/pytest -n 2 --dist worksteal -m "not system"

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Benchmarks, some twelve minutes on an idle machine; `make bench BENCH="learner_update weights"` runs some of them.
BENCH ?=
bench: $(INSTALLED)
	$(BIN)/python -m benchmarks --write $(BENCH)

# What the benchmarks compare with, each with packages of its own; without it those comparisons are skipped.
bench-peers:
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet -r benchmarks/peers/requirements.txt
	test -x .venv-reverb/bin/python || $(PYTHON) -m venv .venv-reverb
	.venv-reverb/bin/python -m pip install --quiet -r benchmarks/peers/requirements-reverb.txt

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(PROJECT): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV); without a GPU, TORCH_BACKEND=cpu saves several GB"
	test -z "$(TORCH_BACKEND)" || $(PIP) uv
	test -z "$(TORCH_BACKEND)" || $(BIN)/uv pip install --python $(BIN)/python --torch-backend=$(TORCH_BACKEND) -c constraints.txt torch
	$(PIP) -e ".[video]"
	touch $(PROJECT)

$(INSTALLED): $(PROJECT)
	$(PIP) -e ".[test,dev]"
	touch $(INSTALLED)
