# The five commands that people run. `make install` makes .venv; the others use it if it is there.
PYTHON ?= python3
BIN := $(if $(wildcard .venv/bin/python),.venv/bin/,)

.PHONY: install smoke test lint docs

install:
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -e ".[dev]" -c constraints/cpu.txt

smoke:
	$(BIN)varkd smoke

test:
	$(BIN)pytest

lint:
	$(BIN)ruff format --check .
	$(BIN)ruff check .
	$(BIN)pyright --pythonpath "$$(command -v $(BIN)python)"

docs:
	$(BIN)mkdocs build --strict --site-dir build/site
