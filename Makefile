# Needs Python 3.11 or newer, a C++ compiler (pydensecrf) and, for the first `make setup`, a way to the package index.
VENV ?= .venv
CORES ?= 2
PYTHON ?= $(shell for python in python3.11 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
export OMP_NUM_THREADS ?= 2
export OMP_WAIT_POLICY ?= passive
export UV_HTTP_TIMEOUT ?= 300

# Values of the command line become words of shell commands and never commands: VENV='a; b' is one word.
quoted = '$(subst ','\'',$(1))'
ifneq ($(words $(VENV)),1)
$(error VENV is one folder whose name has no space, not "$(VENV)")
endif
JOBS := $(call quoted,$(CORES))
BIN := $(call quoted,$(VENV)/bin)
READY := $(VENV)/.ready
# Snakemake's own lock outlives a killed run; flock's does not.
ONE_AT_A_TIME := $(if $(shell command -v flock),flock $(call quoted,$(READY)),)

.PHONY: help setup demo smoke own check test lint types refresh site bench lock clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

setup: $(READY)  ## create .venv (or VENV=folder) with exactly the packages of requirements.lock

$(READY): requirements.lock pyproject.toml wsss_lib/ops/dense_crf.cpp
	@test -n $(call quoted,$(PYTHON)) || { echo "Python 3.11 or newer was not found; name one with make PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(BIN)/python || $(call quoted,$(PYTHON)) -m venv -- $(call quoted,$(VENV))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
	@# Compiled, as every notebook and worker process would do it again where Python may not write beside its packages.
	$(BIN)/uv pip install --python $(BIN)/python --quiet --require-hashes --compile-bytecode -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps -e .
	@touch -- $(call quoted,$@)

demo: setup  ## all six methods through the whole chain on 200 generated images, then a table and an HTML report
	$(ONE_AT_A_TIME) $(BIN)/snakemake --cores=$(JOBS) --nolock --rerun-incomplete --quiet host \
		--config preset=demo methods='[cam,rib,drs,amn,vwe,sccam]'
	@$(BIN)/python -m wsss_lib.results runs/demo/toy
	@echo "The report: runs/demo/toy/report/index.html"

smoke: setup  ## the whole chain of CAM on generated data, into runs/toy: what the notebooks open
	$(ONE_AT_A_TIME) $(BIN)/snakemake --cores=$(JOBS) --nolock --rerun-incomplete --quiet host --config preset=smoke
	@$(BIN)/python -m wsss_lib.results runs/toy

own: export DATA := $(DATA)
own: export LABELS := $(LABELS)
own: setup  ## masks for your photographs: make own DATA=folder [LABELS=table.csv]
	@test -n "$$DATA" || { echo "name the folder: make own DATA=/path/to/photographs [LABELS=/path/to/table.csv]" >&2; exit 1; }
	@$(BIN)/python -m data_prep.own "$$DATA" $${LABELS:+--labels "$$LABELS"} --cores=$(JOBS)

check: lint types  ## the fast loop: linter, formatter, types, and all tests that start no process and train no network
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -m "not system" --numprocesses=$(JOBS) --dist=loadfile --quiet

test: setup  ## run all tests, those of the notebooks and of the pipeline included
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests notebooks --nbval --nbval-current-env --nbval-cell-timeout=600 \
		--numprocesses=$(JOBS) --dist=loadfile --no-loadscope-reorder

lint: setup  ## check the code
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .

types: setup  ## what the type checker finds
	@$(BIN)/mypy

refresh: setup  ## run the notebooks again and store their outputs
	$(BIN)/python tests/refresh_notebooks.py

site: setup  ## build build/site from the stored notebooks, without a network
	@$(BIN)/python docs/site/build.py build/site

bench: setup  ## compare plain formulations with ours: half an hour of two idle cores, one table
	@$(BIN)/python benchmarks/run_all.py

lock: setup  ## solve the dependencies of pyproject.toml anew into requirements.lock
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --fork-strategy fewest \
		--generate-hashes --no-emit-index-url --no-header --upgrade --quiet --output-file requirements.lock

# From another folder too (make -f PATH/Makefile clean): everything is named from the Makefile's own, or nothing is removed. Only
# the project's own code is searched, so that neither an environment nor data lose anything, whatever their names are.
clean: export MAKEFILE_GIVEN := $(MAKEFILE_LIST)
clean:  ## remove the results of make demo and of smoke runs, generated data and caches; not the environment, not other runs
	@cd -- "$$(dirname -- "$${MAKEFILE_GIVEN# }")" && set -x && \
	rm -rf runs/toy runs/demo data/toy runs/samples data/samples .snakemake .pytest_cache .ruff_cache .hypothesis build *.egg-info \
		__pycache__ && \
	for folder in wsss_lib data_prep tests docs benchmarks notebooks; do test ! -d $$folder || \
		find $$folder -name __pycache__ -prune -exec rm -rf {} +; done
