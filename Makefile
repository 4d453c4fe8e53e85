# Two commands on a fresh machine with Python 3.11+:  make serve   and   make test
PYTHON ?= python3
BIN := .venv/bin

.PHONY: serve test setup lint docs clean

## Run a node with a demonstration app on 127.0.0.1:6001
serve: $(BIN)/cachecast
	$(BIN)/cachecast serve

## Run the tests
test: .venv/.dev
	$(BIN)/python -m pytest

## Install everything that development needs
setup: .venv/.dev

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

## Build the manual: docs/_build/html/index.html. Warnings are errors
docs: .venv/.docs
	$(BIN)/sphinx-build --fail-on-warning --keep-going --nitpicky --quiet --fresh-env -b html -d docs/_build/doctrees docs docs/_build/html

$(BIN)/cachecast: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/.dev: $(BIN)/cachecast
	$(BIN)/python -m pip install --quiet --editable '.[load,bench]' --group dev
	touch $@

.venv/.docs: .venv/.dev
	$(BIN)/python -m pip install --quiet --group docs
	touch $@

clean:
	rm -rf .venv docs/_build
