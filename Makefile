# All targets need only Python 3.11 or later and make. `make setup` is done by the others as needed.
PYTHON ?= python3
BIN := .venv/bin
# Versions of all packages: those that were tested on Python 3.11, and the newest ones, on Python 3.12 and later.
CONSTRAINTS := $(shell $(PYTHON) -c 'import sys; print("constraints.txt" if sys.version_info < (3, 12) else "constraints-3.13.txt")')
# A process a core; the tests of a file share compiled programs and stay together.
PARALLEL := --numprocesses logical --maxprocesses 8 --dist loadfile

.PHONY: setup train test test-more test-slow lint types bench bench-full docs tables clean

setup: .venv/ready

.venv/ready: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rlx needs Python 3.11 or later; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	@touch $@

# Every environment suite and log that is an extra, in an environment of its own, and what drives a browser that is installed.
.venvs/more/ready: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv .venvs/more
	.venvs/more/bin/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev,playground,wandb,worlds,search,envpool,minari]' playwright
	@touch $@

# The exporter to ONNX, which asks for an older orbax than the constraints have.
.venvs/onnx/ready: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv .venvs/onnx
	grep -v orbax $(CONSTRAINTS) > .venvs/onnx/constraints.txt
	.venvs/onnx/bin/python -m pip install --quiet --constraint .venvs/onnx/constraints.txt --editable '.[dev,onnx]'
	@touch $@

# The tools that build the site, in an environment of their own.
.venvs/docs/ready: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv .venvs/docs
	.venvs/docs/bin/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[docs]'
	@touch $@

train: setup  ## train PPO on CartPole, evaluate it, draw its curve
	$(BIN)/python algos/ppo.py --env CartPole-v1

test: setup  ## the tests of every part, in minutes
	$(BIN)/python -m pytest -m 'not slow and not more' $(PARALLEL)

test-more: .venvs/more/ready .venvs/onnx/ready  ## the tests that take many seconds each or need an extra
	.venvs/more/bin/python -m pytest -m 'more and not slow' $(PARALLEL)
	.venvs/onnx/bin/python -m pytest -m 'more and not slow' tests/test_deploy.py

test-slow: setup  ## the tests that take minutes each
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) types

types: setup  ## the types; the checker sees rlx as it is installed, with algos/ and envs/ within it
	@rm -rf build/types && mkdir -p build/types/rlx
	@cd build/types/rlx && ln -s ../../../rlx/* ../../../algos ../../../envs .
	$(BIN)/basedpyright --project pyproject.toml --pythonpath $(BIN)/python

bench: setup  ## a short form of the next in 20 minutes: some cases, once; into runs/benchmarks
	$(BIN)/python benchmarks/speed.py --repeats 1 --force --out runs/benchmarks/speed.json \
		--case CartPole-v1 "SAC, buffer 10^4" "brax/hopper, spring"
	$(BIN)/python benchmarks/returns.py --task CartPole-v1 --force --out runs/benchmarks/returns

bench-full: setup  ## all of what is measured and not yet there, into benchmarks/results: hours
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/shell.py
	$(BIN)/python benchmarks/roofline.py
	$(BIN)/python benchmarks/returns.py
	$(BIN)/python benchmarks/peer_returns.py
	$(BIN)/python benchmarks/tables.py

docs: .venvs/docs/ready  ## the site, into build/site
	NO_MKDOCS_2_WARNING=1 .venvs/docs/bin/python -m mkdocs build --strict

tables: setup  ## the tables of README.md and docs/ from benchmarks/results
	$(BIN)/python benchmarks/tables.py

clean:
	rm -rf .venv .venvs build *.egg-info
