# make test        set up what is missing, check and test all
# make demo        set up what is missing, run the component on an embedded local core
# make bench       set up what is missing, measure the component against a bare subscriber
# make simulate    set up what is missing, simulate 10,000 device-years of whole sites, then with bugs planted
# make fleet       set up what is missing, simulate a fleet against the account's quota
# make soak        set up what is missing, let the component endure random faults for MINUTES (20)
# make fuzz        fuzz every decoder and the configuration, a million inputs each (RUNS=…; Linux on x86_64)
# make lint, make units, make e2e   a part of make test
# make versions    the unit tests and one end-to-end test on the oldest and the newest Python there is
# make wheelhouse  bundle the packages with the artifact, for core devices without a package index
# make sbom        write the bill of materials of those packages, which goes with the artifact
# make lock        pin the requirements anew (needs uv)
# make clean       remove all that these make
# PYTHON=… chooses the Python (3.10 or newer); PIP_INDEX_URL and pip's configuration the package index.

VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
UV ?= uv
LOCK := $(UV) pip compile --universal --python-version 3.10 --generate-hashes --no-header --upgrade --quiet

.PHONY: test units e2e demo bench simulate fleet soak fuzz lint versions wheelhouse sbom lock clean
.DEFAULT_GOAL := test

# The tests start some thousand processes: without it each would compile anew what it imports.
unexport PYTHONDONTWRITEBYTECODE

# What waits for processes takes a core at most, so what computes runs beside it, and gives way.
SIDE_BY_SIDE = @$(MAKE) --no-print-directory --jobs=4 --output-sync=target
# MAKEFLAGS= since a make that a test runs is no part of this one.
PYTEST = $(RUN) -m pytest --dist worksteal

test: $(READY)
	@echo "Checks, unit tests and end-to-end tests run side by side; what each prints follows when it has ended."
	$(SIDE_BY_SIDE) lint units e2e

units: $(READY)
	MAKEFLAGS= nice $(PYTEST) -n 2 -m "not e2e"

e2e: $(READY)
	MAKEFLAGS= $(PYTEST) -n 6 -m e2e $$(grep -rl --include='test_*.py' 'mark\.e2e' tests)

lint: $(READY)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	PYTHONPATH=src $(VENV)/bin/lint-imports --no-logo

demo: $(READY)
	PYTHONPATH=src $(RUN) -m local_core.demo

bench: $(READY)
	PYTHONPATH=src $(RUN) -m local_core.bench $(PARTS)

versions: $(READY)
	MAKEFLAGS= nice $(RUN) .ci/versions.py build/envs

wheelhouse: $(READY)
	$(RUN) .ci/wheelhouse.py requirements.txt wheelhouse

# It describes what is installed, not this project: its warning about that is left out.
sbom: $(READY)
	@mkdir -p build
	$(RUN) -W ignore::UserWarning -m cyclonedx_py requirements --pyproject pyproject.toml --mc-type application \
		--output-reproducible --output-file build/sbom.cdx.json requirements.txt

simulate: $(READY)
	PYTHONPATH=src $(RUN) -m local_core.simulation
	PYTHONPATH=src $(RUN) -m local_core.simulation --mutations

fleet: $(READY)
	PYTHONPATH=src $(RUN) -m local_core.fleet

MINUTES ?= 20
soak: $(READY)
	PYTHONPATH=src $(RUN) -m local_core.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

# In an environment of its own: atheris has wheels for some Pythons and machines only.
FUZZ := build/envs/fuzz
RUNS ?= 1000000
fuzz: $(FUZZ)/.ready
	PYTHONPATH=src $(FUZZ)/bin/python -m local_core.fuzz --runs $(RUNS)

$(FUZZ)/.ready: requirements.txt requirements-fuzz.txt .ci/environment.py
	@for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
		if "$$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' 2>/dev/null \
				&& PIP_ONLY_BINARY=atheris "$$python" .ci/environment.py $(FUZZ) requirements.txt requirements-fuzz.txt; then \
			touch $@; exit 0; \
		fi; \
		rm -rf $(FUZZ); \
	done; \
	echo "Fuzzing needs atheris, which has wheels for Linux with glibc on x86_64 and Python 3.10 to 3.14;" >&2; \
	echo "no Python here could install it. PYTHON=… chooses another one. Nothing else needs it." >&2; exit 1

lock:
	$(LOCK) --output-file requirements.txt requirements.in
	$(LOCK) --output-file requirements-dev.txt requirements-dev.in
	$(LOCK) --output-file requirements-fuzz.txt requirements-fuzz.in

clean:
	rm -rf $(VENV) build greengrass-build wheelhouse zip-build src/*.egg-info \
		.hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests .ci -name __pycache__ -prune -exec rm -rf {} +

# The first Python that is new enough makes the environment; it says itself what it lacks for that.
$(READY): requirements.txt requirements-dev.txt .ci/environment.py
	@for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then \
			exec "$$python" .ci/environment.py $(VENV) requirements.txt requirements-dev.txt; \
		fi; \
	done; \
	echo "Python 3.10 or newer is needed, and python3 and python3.10 to python3.14 are none." >&2; exit 1
	@touch $@
