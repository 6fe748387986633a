# make test        set up what is missing, check and test all but the long searches
# make test-long   the long searches: property tests with many examples, an installation from the package index
# make demo        set up what is missing, run the component on an embedded local core
# make bench       set up what is missing, run the benchmarks (PARTS=… some of them)
# make simulate    set up what is missing, simulate sites in virtual time (ARGS="--help" has the choices)
# make fleet       set up what is missing, simulate the calls of a fleet against the account's quota (ARGS as above)
# make soak        set up what is missing, run the component on a lively local core for MINUTES=10, and see what grows
# make lint, make units, make e2e   a part of make test
# make versions    the unit tests on the oldest and the newest Python there is
# make lock        pin the requirements anew (needs uv)
# make clean       remove all that these make
# PYTHON=… chooses the Python (3.10 or newer); PIP_INDEX_URL and pip's configuration the package index.

VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
UV ?= uv
LOCK := $(UV) pip compile --universal --python-version 3.10 --generate-hashes --no-header --upgrade --quiet

.PHONY: test test-long units e2e lint demo bench simulate fleet soak versions lock clean
.DEFAULT_GOAL := test

# The tests start some thousand processes: without it each would compile anew what it imports.
unexport PYTHONDONTWRITEBYTECODE

# MAKEFLAGS= since a make that a test runs is no part of this one.
PYTEST = MAKEFLAGS= $(NICE) $(RUN) -m pytest --dist worksteal

# End-to-end tests wait for processes and take a core at most, so what computes runs beside them, and gives way.
test: $(READY)
	@echo "Checks, unit tests and end-to-end tests run side by side; what each prints follows when it has ended."
	@$(MAKE) --no-print-directory --jobs=3 --output-sync=target lint units e2e

units: NICE = nice
units: $(READY)
	$(PYTEST) -n 2 -m "not e2e and not long"

e2e: $(READY)
	$(PYTEST) -n 6 -m "e2e and not long" tests/e2e

test-long: $(READY)
	$(PYTEST) -n 2 -m long --timeout 1200

lint: $(READY)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	PYTHONPATH=src $(VENV)/bin/lint-imports --no-logo

demo: $(READY)
	PYTHONPATH=src $(RUN) -m local_core.demo

bench: $(READY)
	PYTHONPATH=src:tests $(RUN) -m benchmarks $(PARTS)

simulate: $(READY)
	PYTHONPATH=src:tests $(RUN) -m simulation $(ARGS)

fleet: $(READY)
	PYTHONPATH=src:tests $(RUN) -m fleet $(ARGS)

soak: $(READY)
	PYTHONPATH=src:tests $(RUN) -m soak $(or $(MINUTES),10)

versions: $(READY)
	MAKEFLAGS= nice $(RUN) .ci/versions.py build/envs

lock:
	$(LOCK) --output-file requirements.txt requirements.in
	$(LOCK) --output-file requirements-dev.txt requirements-dev.in

clean:
	rm -rf $(VENV) build greengrass-build zip-build src/*.egg-info \
		.hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find .ci benchmarks src tests -name __pycache__ -prune -exec rm -rf {} +

# The first Python that is new enough makes the environment; it says itself what it lacks for that.
$(READY): requirements.txt requirements-dev.txt .ci/environment.py
	@for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then \
			exec "$$python" .ci/environment.py $(VENV) requirements.txt requirements-dev.txt; \
		fi; \
	done; \
	echo "Python 3.10 or newer is needed, and python3 and python3.10 to python3.14 are none: install one." >&2; exit 1
	@touch $@
