# Each target does its own set-up in .venv and .venv-generate, and changes nothing else.
PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
PORT ?= 8001

.PHONY: demo test check lint types generated proto slow clean

# A server, arriving messages and a durable subscriber; prints the link that logs in as root, and the pages to look at.
demo: $(VENV)/demo-installed
	@exec env PORT=$(PORT) BIN=$(BIN) sh demo/run

# Install everything, then run every check: lint, types, generated code, the service's definition, all tests.
test: said system-packages $(VENV)/test-installed
	$(MAKE) check

# Five at a time: the tests mostly wait for servers, browsers and clients. The longest first: see tests/conftest.py.
# Python may keep what it has compiled, or each of some hundred processes compiles the package anew.
check: lint types generated proto
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 5 --dist loadfile --no-loadscope-reorder

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/cog --check -P -I docs docs/api.md docs/cli.md docs/configuration.md docs/monitoring.md

types:
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini

generated:
	proto/generate --check
	clients/typescript/generate --check

# Lint db.proto, and check that it breaks no client.
proto:
	proto/check

# Write what the docs have from the code (tables of options, the Python API), then build their site in build/docs.
.PHONY: docs
docs: $(VENV)/test-installed
	$(BIN)/cog -r -P -I docs docs/api.md docs/cli.md docs/configuration.md docs/monitoring.md
	$(BIN)/python -m sphinx -W --keep-going -n -q docs build/docs
	@echo "The site: build/docs/index.html"

# Make the pictures in the docs: every page, on a phone and a desktop, and some of them dark.
.PHONY: pictures
pictures: system-packages $(VENV)/test-installed
	$(BIN)/python tests/support/pictures.py docs/pictures

# Run the tests that take minutes.
slow: system-packages $(VENV)/test-installed
	$(BIN)/python -m pytest -m slow

.PHONY: said
said:
	@echo "make test: installs what the tests need into .venv (650 MB), and of Debian's packages Chromium, node and what else is"
	@echo "missing, if it has the rights to; then runs every check. That takes about 8 minutes on two cores, and some more the"
	@echo "first time."

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
	rm -rf clients/typescript/dist clients/typescript/node_modules
