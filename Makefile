# One command each: `make quickstart`, `make test`. Everything installs into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A process takes some 2 GB, hence four at most.
PYTEST := $(BIN)/python -m pytest -q -rs -n auto --maxprocesses 4 --dist loadfile

.PHONY: quickstart test test-slow clean

quickstart: $(VENV)/installed
	$(BIN)/tfseg-prune run --config=configs/streets_quickstart.py --workdir=runs/quickstart

test: $(VENV)/installed-dev
	$(PYTEST)

test-slow: $(VENV)/installed-dev
	$(PYTEST) -m slow

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python 3.11 or later is needed, this is {sys.version}"'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: setup.py | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs
