# Three commands: `make repro` reproduces the default results, `make test` checks the project, `make mutants` checks that
# the tests notice changes of the method's code (seven minutes). All make .venv when it is missing or pyproject.toml has changed;
# the first does only what changed when it is called again.
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: repro test test-slow mutants clean

# A downloaded archive is no git repository, which dvc asks for unless it is told.
repro: $(VENV)/installed
	git rev-parse --git-dir >/dev/null 2>&1 || dvc config --local core.no_scm true
	dvc repro

test: $(VENV)/installed-test
	ruff check .
	ruff format --check .
	mypy
	pytest -m "not slow"

test-slow: $(VENV)/installed-test
	pytest -m slow

# One part of it: make mutants MUTANTS='--files "distill/*" --sample 50'
mutants: $(VENV)/installed-test
	PYTHONPATH=tests python -m mutation $(MUTANTS)

$(VENV)/installed: pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: pyproject.toml $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV)
