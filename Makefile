# make demo: the main job on the embedded pair.  make test: the whole suite, with ruff and mypy.
# make docs: the documentation as a site, in reports/site.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN    := reports/demo

# The embedded models are so small that several threads wait for each other more than they work.
export OMP_NUM_THREADS ?= 1

.PHONY: install demo test docs lint models clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,backends,gguf,ray,s3,accelerate]'
	touch $@

demo: install
	$(BIN)/probes run data/suites/demo.yaml --out $(RUN) --force

test: install lint
	$(BIN)/python -m pytest -n auto --dist loadfile

docs: install
	$(BIN)/mkdocs build

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

models: install
	$(BIN)/python -m data.train_demo

clean:
	rm -rf $(VENV) $(RUN)
