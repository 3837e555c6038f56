# Every target but clean and distclean first sets up .venv from requirements.lock; when nothing changed that costs nothing.
# make PYTHON=python3.12 chooses the interpreter that .venv is made with.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"
UV_PIP := $(BIN)/uv pip
LOCK_FLAGS ?=
SEEDS ?= 2

# What a user's shell or a cluster's module system may have set, and what would then reach into .venv.
unexport PYTHONHOME PYTHONPATH UV_PROJECT_ENVIRONMENT UV_SYSTEM_PYTHON

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test fake-gpu-compiled slurm-up slurm-down slurm-matrix soak fuzz bench lint lint-python lint-workflow lint-types lint-generated format lock docs pull track clean distclean FORCE

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-17s %s\n", $$1, $$2}' Makefile

setup: $(INSTALLED) ## Make .venv: the exact packages of requirements.lock, and this one, editable

demo: $(INSTALLED) ## Distil, train and compare on handwritten digits: the whole chain, in minutes
	@$(RUN) $(BIN)/snakemake demo --config scale=demo seeds=$(SEEDS) --logger cda
	@cat results/demo/demo.md
	@printf '\nPictures: %s\nReport:   %s\n' "$$(echo results/demo/demo-*.png)" results/demo/report.html

test: $(INSTALLED) ## Run the tests, each file in one of as many processes as there are cores, four at most
	$(RUN) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

fake-gpu-compiled: $(INSTALLED) ## Count what the compiled steps would launch on an H100, without one (STAGES='squeeze')
	$(RUN) OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.fake_gpu.compiled $(STAGES)

slurm-up: $(INSTALLED) ## Start a SLURM of one node on this machine, and say how a shell finds it (SLURM=FOLDER)
	@$(BIN)/python tests/slurm/cluster.py up $(SLURM)

slurm-down: ## End it, and its jobs
	@$(BIN)/python tests/slurm/cluster.py down $(SLURM)

slurm-matrix: $(INSTALLED) ## Kill, cancel, preempt and time out jobs on a SLURM of this machine: docs/survival.md (needs root; CASES=time-limit)
	$(RUN) $(BIN)/python -m tests.slurm.survival --page $(CASES)

soak: $(INSTALLED) ## Inject faults into a workflow on a SLURM of this machine, over and over (needs root; MINUTES=45 SEED=1)
	$(RUN) $(BIN)/python -m tests.slurm.soak --page $(or $(MINUTES),45) $(SEED)

pull: $(INSTALLED) ## Bring what a table's missing cells were made from: make pull TABLE=results/table1.csv
	$(RUN) $(BIN)/cda pull $(or $(TABLE),$(error TABLE is not set: make pull TABLE=results/table1.csv))

track: $(INSTALLED) ## Hand finished runs to DVC, after a run
	$(RUN) $(BIN)/cda track

fuzz: $(INSTALLED) ## Give every reader of a foreign file damaged ones: make fuzz SECONDS=60 SEED=0, the seconds for each reader
	CDA_FUZZ_SECONDS=$(or $(SECONDS),60) CDA_FUZZ_SEED=$(or $(SEED),0) $(BIN)/python -m pytest tests/unit/test_fuzz.py

bench: $(INSTALLED) ## Measure the engines beside plain code, on this machine's GPU or CPU: results/benchmarks.csv (BENCH=--quick)
	$(RUN) $(BIN)/python -m benchmarks $(BENCH)

lint: lint-python lint-workflow lint-types lint-generated ## Check style, types, the workflow and the generated files

lint-python: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-cache

lint-workflow: $(INSTALLED)
	$(BIN)/snakefmt --check workflow
	$(RUN) $(BIN)/snakemake --lint

lint-types: $(INSTALLED)
	$(BIN)/mypy

lint-generated: $(INSTALLED)
	$(BIN)/python tools/environment.py --check
	$(BIN)/python tools/config_reference.py --check
	$(BIN)/cda reproduction | diff docs/reproduction.md - || { echo "docs/reproduction.md is old: make docs"; exit 1; }
	$(BIN)/dvc status --quiet results || { echo "results/ are old: dvc repro"; exit 1; }

format: $(INSTALLED) ## Lay out code and workflow the way lint asks for
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/snakefmt workflow

lock: $(BIN)/uv ## Pin what pyproject.toml asks for, keeping the pins that fit (LOCK_FLAGS=--upgrade: the newest)
	$(UV_PIP) compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --extra dev $(LOCK_FLAGS) --output-file requirements.lock pyproject.toml
	$(BIN)/python tools/environment.py

docs: $(INSTALLED) ## Make the generated pages and the README's pictures (the demo first)
	$(BIN)/python tools/config_reference.py > docs/configuration.md
	$(BIN)/cda reproduction > docs/reproduction.md
	$(RUN) $(BIN)/snakemake all --rulegraph mermaid-js | $(BIN)/python tools/dag.py docs/images/dag.svg
	cp results/demo/demo-distilled.png docs/images/

clean: ## Remove the demo's outputs and the tools' caches; no other run's
	rm -rf results/demo artifacts/demo logs/artifacts/demo logs/results/demo .mypy_cache .pytest_cache .ruff_cache
	find src tests tools benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## The same, and .venv too
	rm -rf $(VENV) src/*.egg-info

# .venv starts with two packages, by pip: uv, which installs the rest, and setuptools, which builds the few packages that have
# no wheel. Both come at the lock's version and hash, and nothing is built in an environment that the lock does not know.
$(BIN)/uv: $(if $(wildcard $(BIN)/python),,FORCE)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else "$(PYTHON) is \
	Python %d.%d, and this needs 3.11, 3.12 or 3.13: make PYTHON=python3.12 $(MAKECMDGOALS)" % v)'
	$(PYTHON) -m venv --clear $(VENV)
	awk '/^[^ ]/ {wanted = /^(setuptools|uv)==/} wanted' requirements.lock > $(VENV)/bootstrap.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $(VENV)/bootstrap.txt

$(INSTALLED): $(BIN)/uv requirements.lock pyproject.toml
	$(UV_PIP) sync --python $(BIN)/python --require-hashes --no-build-isolation --compile-bytecode requirements.lock
	$(UV_PIP) install --python $(BIN)/python --quiet --offline --no-deps --no-build-isolation --editable .
	@touch $@
