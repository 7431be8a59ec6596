# Each target does all the set-up it needs; the second time it is quick.
PYTHON ?= python3
BIN := .venv/bin
# As many ranks as there are GPUs, in powers of two up to 8, or 2 ranks on the CPU.
NPROC ?= $(shell $(BIN)/python -c 'import torch; n = torch.cuda.device_count() or 2; print(max(p for p in (1, 2, 4, 8) if p <= n))')

.PHONY: install quickstart lint tests test test-all clean

install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

quickstart: install
	$(BIN)/msam-scale data prepare digits --out data/digits
	$(BIN)/deepspeed --log_level error --num_accelerators $(NPROC) launch/train.py configs/quickstart.yaml

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

tests: install
	$(BIN)/python -m pytest

# Types are checked while the first tests start.
test: install
	$(MAKE) --no-print-directory --jobs 2 lint tests

# The long parts, by name: make test-all PARTS="chaos readme". `make test` is not among them.
test-all: install
	$(BIN)/python -m tests.parts $(PARTS)

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
