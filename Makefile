# The commands of the README. Set-up happens once: again only when pyproject.toml or constraints.txt has changed.
PYTHON ?= python3
VENV ?= .venv
export VENV

BIN := $(VENV)/bin
# Not compiled at once: of what is installed a small part is ever imported.
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet --no-compile --constraint constraints.txt
HEART := examples/heart/federation.toml
EXTRAS := dev,ray,hub,tensorboard,mlflow,robustness,sql

.PHONY: help demo deploy test check clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 16

demo: $(VENV)/.ready  ## set up, then train the heart federation over four hospitals
	$(BIN)/cloister simulate $(HEART)

deploy: $(VENV)/.ready  ## set up, then run three hospitals, a server and a user as processes on this machine (needs nginx)
	PATH="$(abspath $(BIN)):$$PATH" examples/deployment/run.sh deployment

test: $(VENV)/.ready-dev  ## set up for development, then run the fast tests
	$(BIN)/python -m pytest

check: $(VENV)/.ready-dev  ## all that CI checks, but for the slow tests
	scripts/check

clean:  ## remove the virtual environment and every cache
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first, by itself, so that a build chosen beforehand (for example one for CPUs) stays.
$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "Setting up $(VENV): this takes a few minutes the first time."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable .
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(PIP) --editable '.[$(EXTRAS)]'
	scripts/openfhe || true
	touch $@
