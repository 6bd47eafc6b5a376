# All targets need only Python 3.11 or later and make. `make setup` is done by the others as needed.
PYTHON ?= python3
BIN := .venv/bin
# A process a core; the tests of a file share compiled programs and stay together.
PARALLEL := --numprocesses logical --maxprocesses 8 --dist loadfile

.PHONY: setup train test test-slow lint bench bench-full tables clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rlx needs Python 3.11 or later; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

train: setup  ## train PPO on CartPole, evaluate it, draw its curve
	$(BIN)/python algos/ppo.py --env CartPole-v1

test: setup  ## all tests but the slow ones
	$(BIN)/python -m pytest -m 'not slow' $(PARALLEL)

test-slow: setup  ## the tests that take minutes each
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

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

tables: setup  ## the tables of README.md from benchmarks/results
	$(BIN)/python benchmarks/tables.py

clean:
	rm -rf .venv .venvs build *.egg-info
