# Two commands: `make repro` reproduces the default results, `make test` checks the project. Both make .venv when it is
# missing or pyproject.toml has changed, and do only what changed when they are called again.
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: repro test test-slow clean

repro: $(VENV)/installed
	dvc repro

test: $(VENV)/installed-test
	ruff check .
	ruff format --check .
	mypy
	pytest -m "not slow"

test-slow: $(VENV)/installed-test
	pytest -m slow

$(VENV)/installed: pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: pyproject.toml $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV)
