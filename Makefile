# PIP_ARGS passes through to pip (a CPU wheel index, a proxy). CONSTRAINTS= installs the newest releases in range.
PYTHON ?= python3
VENV ?= .venv
VENV_TPU ?= .venv-tpu
EXTRAS ?= torch,cpu,jax,ui,serve,dev
CONSTRAINTS ?= constraints.txt
PIP_ARGS ?=
PYTEST_ARGS ?=
MUTANTS_ARGS ?=
GENERIC ?= 300
SEED ?= 0
WORKERS ?= 2
DEMO ?= demo
REPORT ?= parity-report
REPORT_ARGS ?=
MINUTES ?= 30
KILLS ?= 50

BIN := $(VENV)/bin
READY := $(VENV)/.installed
BIN_TPU := $(VENV_TPU)/bin
READY_TPU := $(VENV_TPU)/.installed

# One thread a worker: two workers on two cores, and sums in the same order on every machine.
test browser proofs kills: export JAX_PLATFORMS ?= cpu
test browser proofs kills: export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test browser parity proofs report mutants mutant-tests mutation soak kills serve-load check kernels tpu bench gpu-check clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY)  ## make the virtual environment

$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) $(addprefix -c ,$(CONSTRAINTS)) -e '.[$(EXTRAS)]'
	@touch $@

demo: setup  ## stories, train on torch, convert, resume on JAX, generate: a few minutes
	PATH="$(abspath $(BIN)):$$PATH" recipes/demo.sh $(DEMO)

test: setup  ## every test that takes seconds
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not long and not browser" $(PYTEST_ARGS)

# Debian's Chromium, where it may be installed; without one the tests are skipped, with a reason.
browser: setup  ## the web page in a real Chromium
	@command -v chromium google-chrome chromium-browser || test $$(id -u) != 0 || ! command -v apt-get || \
		{ apt-get update -q && apt-get install -y -q --no-install-recommends chromium; } || true
	$(BIN)/python -m pytest -m browser $(PYTEST_ARGS)

parity: proofs report  ## the proofs that take minutes (trajectories, hand-over, SIGKILL), then the report

proofs: setup
	$(BIN)/python -m pytest -v -n $(WORKERS) --dist worksteal -m long --durations 0 --durations-min 1 $(PYTEST_ARGS)

# On whatever devices are present.
report: setup
	$(BIN)/liquidnet parity --report $(REPORT) $(REPORT_ARGS)

mutants: setup  ## planted faults, one by one: which test catches each, by how many bounds
	$(BIN)/python -m parity.suite.mutants $(MUTANTS_ARGS)

mutant-tests: setup  ## which planted faults lie where the tests named for them do not go
	$(BIN)/python -m parity.suite.mutants --check-tests --workers $(WORKERS) $(MUTANTS_ARGS)

# The first time, and where sources have changed, it records which test executes what: as long as `make test` takes.
mutation: setup  ## GENERIC mutants that mutation operators make, sampled evenly, against the tests that execute them
	$(BIN)/python -m parity.suite.mutants --generic $(GENERIC) --seed $(SEED) --workers $(WORKERS) $(MUTANTS_ARGS)

soak: kills setup  ## runs killed KILLS times, then property tests, hostile text and damaged files, for MINUTES each
	$(BIN)/python -m parity.suite.soak --minutes $(MINUTES) --workers $(WORKERS)
	$(BIN)/python -m parity.suite.robustness.hostile_text --minutes $(MINUTES) --seed $$(date +%s)
	$(BIN)/python -m parity.suite.robustness.damaged_files --minutes $(MINUTES) --seed $$(date +%s)

kills: setup  ## runs that are SIGKILLed KILLS times, in torch, in two processes of it, and in JAX, every format: the same bits
	$(BIN)/python -m parity.suite.runs.crash_resume --kills $(KILLS) --backend torch
	$(BIN)/python -m parity.suite.runs.crash_resume --kills $(KILLS) --backend torch --ranks 2
	$(BIN)/python -m parity.suite.runs.crash_resume --kills $(KILLS) --backend torch --ranks 2 --checkpoint-format dcp --parallel fsdp
	$(BIN)/python -m parity.suite.runs.crash_resume --kills $(KILLS) --backend jax
	$(BIN)/python -m parity.suite.runs.crash_resume --kills $(KILLS) --backend jax --checkpoint-format orbax

serve-load: setup  ## 64 clients ask the server for 5 minutes, on each backend: every text is the one written alone
	$(BIN)/python -m parity.suite.runs.serve_load --backend torch
	$(BIN)/python -m parity.suite.runs.serve_load --backend jax

check: setup  ## lint, format, import fences, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

kernels: setup  ## the Triton kernels: compiled for five GPUs, their bytes counted, against the budget
	$(BIN)/python -m parity.suite.compiled.triton --check

# libtpu makes every `import jax` look for a TPU, so it has an environment of its own.
tpu: $(READY_TPU)  ## the TPU kernels and train steps: compiled by libtpu, no TPU needed, against the budget
	$(BIN_TPU)/python -m pytest -q parity/tests/compiled/test_hlo.py parity/tests/compiled/test_hlo_collectives.py parity/tests/compiled/test_plan.py
	$(BIN_TPU)/python -m parity.suite.compiled.tpu --check

$(READY_TPU): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV_TPU)
	$(BIN_TPU)/python -m pip install $(PIP_ARGS) $(addprefix -c ,$(CONSTRAINTS)) -e '.[tpu,parity]' pytest
	@touch $@

bench: setup  ## ratios against limits and peers on this machine
	$(BIN)/liquidnet bench

gpu-check: setup  ## on a machine with a GPU: its tests, then everything measured, in gpu-check.json
	$(BIN)/python -m tools.bench.gpu_check --json gpu-check.json

clean:  ## remove the virtual environment, the demo and all caches
	rm -rf .venv .venv-tpu demo dist parity-report .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
