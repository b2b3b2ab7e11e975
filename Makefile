# Each target does its own set-up in .venv and .venv-generate, and changes nothing else.
PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
PORT ?= 8001

.PHONY: demo test check lint types generated proto slow clean

# A live page with arriving messages: http://127.0.0.1:8001/weather/-/pubsub
demo: $(VENV)/demo-installed
	@exec env PORT=$(PORT) BIN=$(BIN) sh demo/run

# Install everything, then run every check: lint, types, generated code, the service's definition, all tests.
test: system-packages $(VENV)/test-installed
	$(MAKE) check

# Five at a time: the tests mostly wait for servers, browsers and clients. The longest first: see tests/conftest.py.
# Python may keep what it has compiled, or each of some hundred processes compiles the package anew.
check: lint types generated proto
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 5 --dist loadfile --no-loadscope-reorder

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/cog --check -P -I docs docs/configuration.md

types:
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini

generated:
	proto/generate --check

# Lint db.proto, and check that it breaks no client.
proto:
	proto/check

# Write the tables of options in the docs, from core/settings.py.
.PHONY: docs
docs: $(VENV)/test-installed
	$(BIN)/cog -r -P -I docs docs/configuration.md

# Make the pictures in the docs: every page, on a phone and a desktop, and some of them dark.
.PHONY: pictures
pictures: system-packages $(VENV)/test-installed
	$(BIN)/python tests/support/pictures.py docs/pictures

# Run the tests that take minutes.
slow: system-packages $(VENV)/test-installed
	$(BIN)/python -m pytest -m slow

.PHONY: system-packages
system-packages:
	@sh tests/system-packages

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo-installed: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet -e .
	@touch $@

$(VENV)/test-installed: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-generate build dist *.egg-info weather.db weather.db-wal weather.db-shm
