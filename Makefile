# Everything runs in .venv, which the first target makes. `make demo` and `make test` need nothing else. What runs needs
# .venv/ready; what checks also needs the tools of the extra [dev], .venv/tools.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: demo test lint typecheck bench notebooks pretrain proofs clean

demo: .venv/ready
	$(BIN)/python -m memory_paths experiment=compare

test: .venv/tools
	$(BIN)/python -m pytest

lint: .venv/tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: .venv/tools
	$(BIN)/mypy

bench: .venv/tools
	$(BIN)/python -m pytest tests/bench_paths.py tests/bench_memory.py --benchmark-only --benchmark-group-by=group

notebooks: .venv/tools
	$(BIN)/jupyter execute --inplace notebooks/*.ipynb

pretrain: .venv/ready
	$(BIN)/python -m memory_paths.parametric.pretraining .work/reads --half-keys 128 --addresses 0 --steps 7000
	$(BIN)/python -m memory_paths.parametric.pretraining .work/writable --start .work/reads/model \
		--steps 3600 --growth 0 --rate 0.001 --matrix-rate 0.0025 --decay 0.6
	$(BIN)/python -m memory_paths.parametric.examination .work/writable/model

proofs: .venv/tools
	MEMORY_PATHS_KILLS=200 $(BIN)/python -m pytest --timeout 1800 tests/test_kills_bank.py tests/test_kills_evaluation.py
	MEMORY_PATHS_KILLS=20 $(BIN)/python -m pytest --timeout 1800 tests/test_kills_weights.py

clean:
	rm -rf .venv build dist *.egg-info

.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/tools: .venv/ready
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
