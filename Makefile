# make demo    watch one packet open one port (as root, on Debian 12 or later)
# make test    everything that CI runs: lint, types, import contracts, unit and integration tests
# make check   lint, types and import contracts alone
# make unit    the tests that need no root
# make format  formats the code

BIN := .venv/bin

.PHONY: demo test check unit integration format clean

demo:
	@scripts/prepare demo
	@$(BIN)/python -m integration.demo

test: ready check
	$(BIN)/pytest

check: ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

unit: ready
	$(BIN)/pytest tests

integration: ready
	$(BIN)/pytest integration

format: ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: ready
ready:
	@scripts/prepare test

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
