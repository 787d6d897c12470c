# One command for each thing a developer does; `make help` lists them. Everything lives in .venv.
#
#   PYTHON=python3.12      another interpreter (3.11 or newer)
#   TORCH_INDEX=URL        take torch from this package index, e.g. one with CPU-only builds
#   HOST PORT BUNDLE       for `make serve`, `make bench`; without BUNDLE, the shipped one
#   RECIPE=FILE.toml       for `make pipeline`
#   REQUIRE_ALL=1          for `make test`: a skipped test is a failure (except for a missing GPU)

PYTHON ?= python3
TORCH_INDEX ?=
REQUIRE_ALL ?=
# Not from the environment, where HOST and PORT mean other things.
HOST = 127.0.0.1
PORT = 8000
BUNDLE =
RECIPE = training/recipes/reviews.toml

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
export REQUIRE_ALL

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help install serve test check fix pipeline bench clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*  ## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST)

install: $(VENV)/.dev  ## .venv with everything for development

serve: $(VENV)/.serve  ## the server with the shipped bundle, on port 8000
	$(BIN)/l2e serve $(with_bundle) --host $(HOST) --port $(PORT)

test: check  ## all checks and all tests
	$(BIN)/python -m pytest

check: $(VENV)/.dev  ## format, lint, types and import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

fix: $(VENV)/.dev  ## format, and repair what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

pipeline: $(VENV)/.dev  ## make a bundle from a recipe, every stage, resumable
	$(BIN)/l2e run $(RECIPE)

bench: $(VENV)/.dev  ## what an explanation costs on this machine, in under a minute
	$(BIN)/l2e bench --quick $(with_bundle)

clean:  ## remove .venv, caches and build products
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# A stamp says which set of packages the environment holds; the larger set includes the smaller. While
# pip works, .unfinished lies there: whoever finds it (or no stamp of a whole environment) starts
# from nothing, because pip takes a half-unpacked package for an installed one.
define packages
	@if [ ! -e $(VENV)/.made ] || [ -e $(VENV)/.unfinished ]; then \
	  echo "making $(VENV)"; \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "l2e needs Python 3.11 or newer: make PYTHON=...")' \
	  && $(PYTHON) -m venv --clear $(VENV) && touch $(VENV)/.made; \
	fi
	@touch $(VENV)/.unfinished
	$(2)
	$(PIP) install --constraint constraints.txt --editable '.[$(1)]'
	@rm $(VENV)/.unfinished
endef

$(VENV)/.serve: pyproject.toml constraints.txt
	$(call packages,cpu)
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(call packages,cpu$(comma)otel$(comma)train$(comma)ray$(comma)dev,$(if $(TORCH_INDEX),$(torch_first)))
	@touch $(VENV)/.serve $@

comma := ,
with_bundle = $(if $(BUNDLE),--bundle $(BUNDLE))
torch_first = $(PIP) install --constraint constraints.txt --no-deps --index-url $(TORCH_INDEX) torch
