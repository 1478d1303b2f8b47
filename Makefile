# Everything runs in .venv, made from requirements-dev.txt; only Python >= 3.11 and make are needed.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DEMO := demo-output
OLD_KERNEL := tests/notebook/requirements-old-kernel.txt
PURE := $(addprefix tests/,attribution audit carbon core exports tracing_files views)
# The front end's own tools, with the node that the requirements bring.
FRONT := cd extension && PATH="$(CURDIR)/$(BIN):$$PATH" $(CURDIR)/$(BIN)/jlpm

.PHONY: setup demo test check unit bench docs clean

setup: $(STAMP)

$(STAMP): requirements-dev.txt pyproject.toml $(OLD_KERNEL)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .venv/old-kernel --requirement $(OLD_KERNEL)
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

# The main job on real data: train on scikit-learn's digits, print the layers, write the bundle and the page.
demo: setup
	rm -rf $(DEMO)
	mkdir -p $(DEMO)
	$(BIN)/torchwatt demo --region FRA --csv $(DEMO)/audit --html $(DEMO)/report.html

test: check unit

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(FRONT) install --immutable
	$(FRONT) check

# Tests that measure nothing run side by side; those with clocks, meters and browsers one after the other.
unit: setup
	$(FRONT) install --immutable
	$(FRONT) test
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PURE)
	$(BIN)/python -m pytest $(addprefix --ignore=,$(PURE))

bench: setup
	$(BIN)/python benchmarks/span_cost.py
	$(BIN)/python benchmarks/overhead.py
	PYTHONPATH=. $(BIN)/python benchmarks/audit_speed.py
	PYTHONPATH=. $(BIN)/python benchmarks/live_view.py
	$(BIN)/python benchmarks/join_speed.py
	$(BIN)/python benchmarks/interleaved.py
	$(BIN)/python benchmarks/attribution_truth.py --minutes 23

# The pages that are made from the code: the schema, and the walk through a real bundle.
docs: setup
	PYTHONPATH=. $(BIN)/python docs/make.py

clean:
	rm -rf .venv $(DEMO) test-output build dist
