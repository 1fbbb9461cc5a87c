# Everything runs in .venv, which the first target makes. `make demo` and `make test` need nothing else. What runs needs
# .venv/ready; what checks also needs the tools of the extra [dev], .venv/tools.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: demo test lint typecheck bench notebooks methods pretrain proofs scale clean

demo: .venv/ready
	$(BIN)/python -m memory_paths experiment=compare

# A process for each core, up to four, each on one thread, for more would take the cores from one another. A process
# takes whole files, so that what the tests of a file share is made once.
test: .venv/tools
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(shell nproc 2>/dev/null || echo 2) --maxprocesses 4 --dist loadfile

lint: .venv/tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: .venv/tools
	$(BIN)/mypy

bench: .venv/tools
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python -m pytest tests/bench_paths.py tests/bench_memory.py tests/bench_stores.py tests/bench_records.py tests/bench_evaluator.py --benchmark-only --benchmark-group-by=group

notebooks: .venv/tools
	$(BIN)/jupyter execute --inplace notebooks/*.ipynb

# Every choice of the weights paths' axes on 240 facts: what trains by itself, all else beside full finetuning, which has
# much to lose. Some four hours on one core; -j2 makes two sweeps at once. Started again it goes on where it was
# stopped; after a change of conf/ it wants another folder, METHODS=multirun/again. Rates were chosen in the same way:
#   make methods METHODS=multirun/methods_rates SEEDS=100 FACTOR=0.3,0.55,1,1.8,3
METHODS ?= multirun/methods
SEEDS ?= 0,1,2
FACTOR ?=
# A sweep with a job that failed ends in an error and must not stop the others; the report names what failed.
METHOD = -$(BIN)/python -m memory_paths -m stream.facts=240 threads=1 hydra.sweep.dir=$(METHODS)/$@ seed=$(SEEDS)
# Beside full finetuning: choice = axis, multiple of the preset's rate, other options.
selective = objective 1
distil_new = objective 1
distil_old = objective 0.55
distil_pseudo_old = objective 1
self_distillation = objective 1
gkd = objective 1
policy_gradient = objective 1
l2 = penalty 1
ewc = penalty 1
feature = penalty 0.55
kl = penalty 1
a_gem = projection 1
ogd = projection 1
experience = rehearsal 1
generative = rehearsal 1
on_policy = rehearsal 0.55
rewarming = schedule 1.8
as_given = study 1
templates = study 1.8
self_edits = study 1 "path.memory.study.instruction=' '" path.memory.study.continues=true
interpolation = merging 1
pruning = merging 5.5
BESIDE = selective distil_new distil_old distil_pseudo_old self_distillation gkd policy_gradient l2 ewc feature kl \
	a_gem ogd experience generative on_policy rewarming as_given templates self_edits interpolation pruning
SWEEPS = methods_presets methods_weights methods_selector $(BESIDE:%=methods_%)
.PHONY: $(SWEEPS)

methods: $(SWEEPS)
	$(BIN)/python -m memory_paths.report $(METHODS)

methods_presets: .venv/ready
	$(METHOD) path.memory.schedule.factor=$(or $(FACTOR),1) path=sparse_memory,sparse_memory_thorough,sparse_memory_frequency,sparse_memory_random,sparse_memory_all,lora,o_lora,full

methods_weights: .venv/ready
	$(METHOD) path.memory.schedule.factor=$(or $(FACTOR),1) path=lora \
		weights@path.memory.weights=lora_stack,shira,osf,ia3,adapter,prompt,prefix,cartridge,prompt_pool,new_blocks,experts

methods_selector: .venv/ready
	$(METHOD) path.memory.schedule.factor=$(or $(FACTOR),1) path=sparse_memory selector@path.memory.weights.selector=divergence

AXIS = $(word 1,$($*))@path.memory.$(word 1,$($*))
$(BESIDE:%=methods_%): methods_%: .venv/ready
	$(METHOD) path=full $(AXIS)=$* $(wordlist 3,9,$($*)) \
		path.memory.schedule.factor=$(or $(FACTOR),$(word 2,$($*)))

pretrain: .venv/ready
	$(BIN)/python -m memory_paths.parametric.pretraining .work/reads --half-keys 128 --addresses 0 --steps 7000
	$(BIN)/python -m memory_paths.parametric.pretraining .work/writable --start .work/reads/model \
		--steps 3600 --growth 0 --rate 0.001 --matrix-rate 0.0025 --decay 0.6
	$(BIN)/python -m memory_paths.parametric.examination .work/writable/model

proofs: .venv/tools
	MEMORY_PATHS_KILLS=500 $(BIN)/python -m pytest --timeout 1800 tests/test_kills_bank.py
	MEMORY_PATHS_KILLS=200 $(BIN)/python -m pytest --timeout 1800 tests/test_kills_evaluation.py tests/test_bank.py -k "kill or damaged"
	MEMORY_PATHS_KILLS=20 $(BIN)/python -m pytest --timeout 1800 tests/test_kills_weights.py
	MEMORY_PATHS_SECONDS=60 $(BIN)/python -m pytest --timeout 1800 -s tests/test_crowd.py
	MEMORY_PATHS_HISTORIES=3400 $(BIN)/python -m pytest --timeout 3600 tests/test_conversation.py
	MEMORY_PATHS_FULL=1 $(BIN)/python -m pytest --timeout 3600 tests/test_promises.py tests/test_combinations.py tests/test_quarantine.py tests/test_harness.py tests/test_statistics.py tests/test_twins.py tests/test_notebooks.py

# Wants MEMORY_PATHS_DATA, a folder of data sets, for their sentences.
scale: .venv/tools
	OMP_NUM_THREADS=1 $(BIN)/python -m memory_paths.retrieval.scale_figures $(MEMORY_PATHS_DATA)

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
