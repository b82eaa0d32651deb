# Everything a newcomer and the continuous integration need. PYTHON picks the interpreter for the virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test check bench bench-check clean

demo: $(VENV)/base
	$(BIN)/freespace demo

test: $(VENV)/test
	$(BIN)/python -m pytest

check: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/base
	$(BIN)/python -m benchmarks.peers

bench-check: $(VENV)/base
	$(if $(PEER),,@echo "PEER=twinlitenet.onnx is not given: budgets against the peer's loop are left out")
	$(BIN)/python -m benchmarks.check_budgets $(if $(PEER),--peer $(PEER),--without-peer)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/base: $(VENV)/bin/python setup.py constraints.txt
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/test: $(VENV)/base
	$(PIP) install --quiet --constraint constraints.txt --editable '.[train,test]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
