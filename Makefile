# make quickstart   set up and train a first model
# make test         set up, lint, types, tests
# make bench        measure against other trainers (benchmarks/RESULTS.md)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# For a machine without a GPU, torch's CPU build is enough:
#   make quickstart PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_FLAGS ?=

.PHONY: quickstart test lint types bench clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_FLAGS) torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_FLAGS) -e ".[digits,images]"
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_FLAGS) -e ".[dev]"
	touch $@

$(VENV)/installed-bench: $(VENV)/installed-dev
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_FLAGS) -e ".[bench]"
	touch $@

quickstart: $(VENV)/installed
	$(BIN)/dist-train run configs/digits-sync.yaml

test: lint types
	$(BIN)/pytest -q -n 2 -m "not processes"
	$(BIN)/pytest -q -n 2 --dist worksteal -m processes

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/mypy

bench: $(VENV)/installed-bench
	$(BIN)/python -m benchmarks.run

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
