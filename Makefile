# make demo    the worked example, in an environment of its own, results in $(OUT)
# make test    the tests;  PYTEST_ARGS="-m 'not slow and not cuda and not exhaustive'" leaves the slow ones out
# make exhaustive  the cases that a change leaves out: all conventions, all pairs of techniques, all seeds
# make cuda    the tests and benchmarks that need a CUDA device, within LIMIT seconds
# make runtimes  a small model in llama.cpp (built from source, minutes of every core) and transformers, a table of both
# make check   lint, types and tests: what a change must pass
#
# Variables: PYTHON (3.11 or newer), VENV, DEMO_VENV, OUT, WORKERS (test processes), PYTEST_ARGS, LIMIT,
# RUNTIMES (a folder for models), LLAMA (xllamacpp has a wheel with llama.cpp built).

PYTHON ?= python3
VENV ?= .venv
DEMO_VENV ?= .venv-demo
OUT ?= out
WORKERS ?= 2
PYTEST_ARGS ?=
LIMIT ?= 540
RUNTIMES ?= runs/runtimes
LLAMA ?= llama-cpp-python==0.3.36
LLAMA_VENV := .venv-$(firstword $(subst ==, ,$(LLAMA)))

# Idle OpenMP threads that spin slow a busy machine down several times.
export OMP_WAIT_POLICY ?= PASSIVE

DEV_EXTRAS := dev
DEMO_EXTRAS := models,plot,cvc5

.DEFAULT_GOAL := help
.PHONY: help env demo test exhaustive cuda runtimes lint format types check clean

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

# $(1): folder, $(2): extras. torch goes in first and alone, at the version in constraints.txt: left to
# the resolver, it may bring another build and gigabytes with it.
define build_env
	@test ! -e "$(1)" || test -f "$(1)/pyvenv.cfg" || \
		{ echo "$(1) exists and is not a virtual environment: leaving it alone" >&2; exit 1; }
	@echo "Building $(1) with compcomp[$(2)]; the first time takes some minutes."
	@rm -rf "$(1)"
	@$(PYTHON) -m venv "$(1)"
	@"$(1)/bin/python" -m pip install -qq --disable-pip-version-check -c constraints.txt torch hatchling
	@"$(1)/bin/python" -m pip install -qq --disable-pip-version-check -c constraints.txt \
		--no-build-isolation -e ".[$(2)]"
	@touch "$(1)/.stamp"
endef

$(VENV)/.stamp: pyproject.toml constraints.txt
	$(call build_env,$(VENV),$(DEV_EXTRAS))

$(DEMO_VENV)/.stamp: pyproject.toml constraints.txt
	$(call build_env,$(DEMO_VENV),$(DEMO_EXTRAS))

env: $(VENV)/.stamp

demo: $(DEMO_VENV)/.stamp
	"$(DEMO_VENV)/bin/compcomp" demo --out "$(OUT)"

# One torch thread a worker, no downloads, no window.
test: export OMP_NUM_THREADS ?= 1
test: export HF_HUB_OFFLINE ?= 1
test: export MPLBACKEND ?= Agg
test: $(VENV)/.stamp
	"$(VENV)/bin/python" -m pytest -n $(WORKERS) $(PYTEST_ARGS)

exhaustive: $(VENV)/.stamp
	OMP_NUM_THREADS=1 "$(VENV)/bin/python" -m pytest -n $(WORKERS) -m exhaustive $(PYTEST_ARGS)

# PYTHON of another environment, with its own build of torch, goes to .ci/cuda itself.
cuda: $(VENV)/.stamp
	PYTHON="$(VENV)/bin/python" LIMIT=$(LIMIT) PYTEST_ARGS="$(PYTEST_ARGS)" .ci/cuda

$(LLAMA_VENV)/.stamp:
	$(PYTHON) -m venv "$(LLAMA_VENV)"
	"$(LLAMA_VENV)/bin/python" -m pip install -qq --disable-pip-version-check --no-binary llama-cpp-python "$(LLAMA)"
	@touch "$@"

$(RUNTIMES)/hf/config.json: | $(VENV)/.stamp
	"$(VENV)/bin/python" -m benchmarks.models prepare "$(RUNTIMES)"

runtimes: $(LLAMA_VENV)/.stamp $(RUNTIMES)/hf/config.json
	"$(VENV)/bin/python" -m benchmarks.runtimes table "$(RUNTIMES)" --llama "$(CURDIR)/$(LLAMA_VENV)/bin/python"

lint: $(VENV)/.stamp
	"$(VENV)/bin/ruff" check .
	"$(VENV)/bin/ruff" format --check .

format: $(VENV)/.stamp
	"$(VENV)/bin/ruff" check --fix .
	"$(VENV)/bin/ruff" format .

types: $(VENV)/.stamp
	"$(VENV)/bin/mypy"

check: lint types test

clean:
	rm -rf .venv .venv-demo out build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find compcomp encodings tests -name __pycache__ -type d -prune -exec rm -rf {} +
