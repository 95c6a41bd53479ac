# Every target sets itself up: a virtual environment with the pinned versions, made once and
# renewed when pyproject.toml or constraints.txt change.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# Options for the command, for example: make train ARGS="env.num_items=3 seed=1"
ARGS ?=

.PHONY: help train test figure paper suite bench bench-jax faults mutants docs notebooks lint format clean

help:
	@echo "make train    train HPO on the single-item inventory problem, 200 updates (ARGS=... overrides)"
	@echo "make test     run the tests"
	@echo "make figure   HPO against PPO by number of items: sweep, tables and figures (20 minutes)"
	@echo "make paper    the paper's two tables, a part of them, with the paper's figures beside ours (40 minutes)"
	@echo "make suite    small problems of many fields, each beside its optimum (40 minutes; ARGS=... for some)"
	@echo "make bench    compare the speed with hand-written PyTorch (ARGS=... for sizes)"
	@echo "make bench-jax  compare the speed with JAX, which it installs (15 minutes; ARGS=... for sizes)"
	@echo "make faults   kill runs, spoil files and numbers, give bad input: what is not noticed? (1 hour)"
	@echo "make mutants  plant faults in the method: which do the tests find? (20 minutes; ARGS=... for more)"
	@echo "make docs     build the documentation into site/; a warning is an error"
	@echo "make notebooks  run the notebooks of the documentation again, and keep what they print and draw"
	@echo "make lint     check style, formatting and types"
	@echo "make format   apply the formatting"

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

# One item is learned in half of the updates that hpo-train makes by default.
train: $(INSTALLED)
	$(BIN)/hpo-train trainer.num_updates=200 $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 $(ARGS)

# Two runs at once; interrupted, the same command goes on where it stopped.
figure: $(INSTALLED)
	$(BIN)/hpo-train --multirun experiment=inventory_sizes hydra/launcher=joblib hydra.launcher.n_jobs=2 $(ARGS)
	$(BIN)/hpo-report runs/inventory_sizes

# The full tables: the overrides that the files in configs/experiment show, and a day or two.
paper: $(INSTALLED)
	$(BIN)/hpo-train --multirun experiment=paper_inventory hydra/launcher=joblib hydra.launcher.n_jobs=2 $(ARGS)
	$(BIN)/hpo-train --multirun experiment=paper_lqr hydra/launcher=joblib hydra.launcher.n_jobs=2 $(ARGS)
	$(BIN)/hpo-report runs/paper_inventory runs/paper_lqr --output runs/paper

suite: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.suite $(ARGS)

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.speed $(ARGS)

bench-jax: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[jax]"
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.speed --jax $(ARGS)

faults: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.faults $(ARGS)

mutants: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.faults.mutants $(ARGS)

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 $(BIN)/mkdocs build --strict $(ARGS)
	@echo "site/index.html is the first page; python3 -m http.server -d site serves it with its search"

notebooks: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/jupyter nbconvert --to notebook --execute --inplace docs/notebooks/*.ipynb
	rm -rf docs/notebooks/runs

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis mutants
