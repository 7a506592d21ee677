# make demo: installs what the demo needs, 1.4 GB of which torch is half, and runs the main job on the embedded models.
# make test: installs what development needs, 2.5 GB in all; then the test suite, with ruff, mypy and import-linter.
# make test-fast: what one runs while writing.  make test-all: every case of every table of tests, before a release.
# make bench: the performance table.  make docs: the documentation as a site, in reports/site.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN    := reports/demo

# The embedded models are so small that several threads wait for each other more than they work.
export OMP_NUM_THREADS ?= 1

.PHONY: install demo test suite test-all test-fast test-hostile test-architectures mutants fuzz bench docs lint models organisms clean

install: $(VENV)/compiled

# What commands and tests import is compiled here, once: where PYTHONDONTWRITEBYTECODE is set, every process would
# compile it again, eight seconds of work each. Compiling all that is installed would take a third of the installation.
COMPILED := torch._dynamo, transformers.modeling_utils, transformers.generation.utils, \
	transformers.models.auto.modeling_auto, transformers.models.llama.modeling_llama, \
	transformers.tokenization_utils_tokenizers, scipy.stats, pandas, pyarrow.dataset, pyarrow.parquet, duckdb, \
	plotly.graph_objects, plotly.offline, jinja2, yaml, typer, rich.table, rich.progress, pydantic, rapidfuzz.distance, \
	huggingface_hub, safetensors.torch, fsspec, jaxtyping, greenlet, transformer_lens.model_bridge, nnsight, peft, \
	lm_eval.evaluator, datasets, ray, accelerate, pytest, xdist, hypothesis, matplotlib.pyplot, probes.cli, tv.cli

PIP := $(BIN)/python -m pip install --progress-bar on --no-compile --disable-pip-version-check --constraint constraints.txt

OLD_PYTHON := import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11") if sys.version_info < (3, 11) else None
VENV_MADE = test -x $(BIN)/pip || { $(PYTHON) -c '$(OLD_PYTHON)' && $(PYTHON) -m venv $(VENV); }

$(VENV)/demo-installed: pyproject.toml constraints.txt
	$(VENV_MADE)
	$(PIP) --editable .
	touch $@

$(VENV)/installed: pyproject.toml constraints.txt | $(if $(filter demo,$(MAKECMDGOALS)),$(VENV)/demo-installed)
	$(VENV_MADE)
	$(PIP) --editable '.[dev,backends,gguf,ray,s3,accelerate,docs]'
	touch $(VENV)/demo-installed $@

$(VENV)/compiled: $(VENV)/installed
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -W ignore -c 'import $(COMPILED)'
	touch $@

demo: $(VENV)/demo-installed
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/probes demo --out $(RUN) --force

# Linters need nothing compiled: they begin while that is done.
test: $(VENV)/installed
	$(MAKE) --jobs 2 lint suite

# What is compiled is kept here too: else every process that a test starts would compile all of it again.
suite: install
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --sample

# Twice the time: all cases of tests that are tables (every adapter, architecture, method), and tests marked `thorough`.
test-all: install lint
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# What one runs while writing: no program is started, no backend compared, no real model loaded.
test-fast: install
	$(BIN)/python -m pytest -n auto -m "not slow"

# Do the tests still catch the faults of tests/mutants.md? Takes half an hour.
mutants: install
	$(BIN)/python -m tests.mutants

# The kill test at full length: runs on embedded models, killed 48 times; captures and attribution on a cluster that
# loses a machine.
test-hostile: install
	HOSTILE_KILLS=48 $(BIN)/python -m pytest tests/hostile/test_kill.py tests/probes/attribution/test_elsewhere.py \
		tests/probes/capture/test_shards.py

# Every type that transformers knows, end to end beside independent hooks, and the table of docs/architectures.md; what
# is stopped goes on where it was.
ARCHITECTURE_MINUTES ?= 120
test-architectures: install
	$(BIN)/python -m tests.architectures.survey --backends --minutes $(ARCHITECTURE_MINUTES) --write

# Every reader of a stranger's file, each for so many seconds; what breaks one lies in reports/fuzz/ afterwards.
FUZZ_SECONDS ?= 60
fuzz: install
	$(PIP) --editable '.[fuzz]'
	for target in $$($(BIN)/python -c 'import fuzz; print(*fuzz.NAMES)'); do $(BIN)/python -m fuzz $$target $(FUZZ_SECONDS) || exit 1; done

# Its models are large enough for every core. BEFORE=FOLDER compares the whole job with a checkout of another build.
bench: export OMP_NUM_THREADS = $(shell $(PYTHON) -c 'import os; print(os.cpu_count())')
bench: install $(VENV)-mergekit/installed
	$(BIN)/python benchmarks/table.py --mergekit $(VENV)-mergekit/bin/python $(if $(BEFORE),--before $(BEFORE))

# mergekit needs older libraries than this project: an environment of its own.
$(VENV)-mergekit/installed:
	$(PYTHON) -m venv $(VENV)-mergekit
	$(VENV)-mergekit/bin/python -m pip install --progress-bar on --disable-pip-version-check --constraint benchmarks/mergekit.txt mergekit
	touch $@

docs: install
	$(BIN)/mkdocs build

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/python docs/prose.py

models: install
	$(BIN)/python -m data.train_demo

# The model organisms over the demo's base, on which discovery is tested.
organisms: install
	$(BIN)/python -m data.organisms.train

clean:
	rm -rf $(VENV) $(VENV)-mergekit $(RUN)
