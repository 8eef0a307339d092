# Everything runs in a virtual environment that the first target to need it makes: `make demo`, `make test`.
# PYTHON chooses the interpreter to make it with, VENV where it lies, JOBS how many processes run the tests.

ACCEPTED := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	if $$python -c '$(ACCEPTED)' 2>/dev/null; then echo $$python; break; fi; done)
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test check docs bench bench-compare soak clean

help: ## Says what there is.
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 24

demo: $(VENV)/.demo ## Trains on the handwritten digits that 100 clients hold.
	$(BIN)/koinon run digits

test: $(VENV)/.test ## Runs all tests, doctests and the code of the documentation.
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

check: $(VENV)/.lint ## Checks formatting, lint, spelling, types and the floors.
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/codespell
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q tests/test_layers.py

docs: $(VENV)/.docs ## Builds the documentation into site/.
	$(BIN)/python docs/generate_errors.py
	$(BIN)/mkdocs build --strict

bench: $(VENV)/.test ## Measures koinon and hand-written JAX; each line that it prints is JSON.
	$(BIN)/python benchmarks/import_time.py
	for workload in W1 W2 W3 W4; do for contestant in koinon handwritten; do \
		$(BIN)/python benchmarks/bench_$$contestant.py $$workload || exit 1; done; done

bench-compare: $(VENV)/.test ## Measures koinon next to its peers, in environments of their own, and writes docs/benchmarks.md.
	$(BIN)/python benchmarks/compare.py
	$(BIN)/python benchmarks/report.py

soak: $(VENV)/.test ## Runs the tests that take minutes, and looks for new examples in all property tests.
	$(BIN)/python -m pytest -m soak
	$(BIN)/python -m pytest --hypothesis-profile=soak

clean: ## Removes the environment and everything that was built; runs/ stays.
	rm -rf $(VENV) benchmarks/.envs build dist site .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp says that the extras of a target are installed as pyproject.toml asks for them. pip compiles bytecode.
EXTRAS_demo := cli,plot,sim
EXTRAS_test := all,test
EXTRAS_lint := all,lint,test
EXTRAS_docs := all,docs

$(VENV)/.demo $(VENV)/.test $(VENV)/.lint $(VENV)/.docs: $(VENV)/.%: pyproject.toml | $(VENV)/.made
	@echo 'Setting up koinon[$(EXTRAS_$*)] in $(VENV), which takes minutes the first time ...'
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[$(EXTRAS_$*)]'
	@touch $@

$(VENV)/.made:
	@test -n '$(PYTHON)' && '$(PYTHON)' -c '$(ACCEPTED)' || { \
		echo 'koinon needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ...' >&2; exit 1; }
	@'$(PYTHON)' -m venv $(VENV)
	@touch $@
