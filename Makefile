# make demo    watch one packet open one port (as root, on Debian 12 or later)
# make test    everything that CI runs: lint, types, import contracts, unit and integration tests
# make check   lint, types and import contracts alone
# make bench   ours and fwknopd side by side, half an hour (as root); make bench-quick in three minutes
# make attack  what people who mean harm do, against hosts of namespaces of their own (as root)
# make unit    the tests that need no root; make unit-elsewhere: on each other Python that is there,
#              as make test does too
# make format  formats the code

BIN := .venv/bin

.PHONY: demo test check unit unit-elsewhere integration attack bench bench-quick format clean
.NOTPARALLEL:

demo:
	@scripts/prepare demo
	@$(BIN)/python -m integration.demo

test: ready check unit unit-elsewhere integration

check: ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# More run at a time than there are processors, for they often wait. In integration a module keeps
# to one process; the tests that measure the machine, or touch it, have it alone afterwards.
unit: ready
	$(BIN)/pytest tests -n 3

unit-elsewhere: ready
	scripts/unit-elsewhere -n 3 -q

integration: ready
	$(BIN)/pytest integration -n 4 --dist loadfile -m "not alone"
	$(BIN)/pytest integration -m alone

attack: ready
	$(BIN)/python -m integration.attacks

bench:
	@scripts/prepare bench
	$(BIN)/python -m benchmarks

bench-quick:
	@scripts/prepare bench
	$(BIN)/python -m benchmarks --quick

format: ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: ready
ready:
	@scripts/prepare test

clean:
	rm -rf build .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
