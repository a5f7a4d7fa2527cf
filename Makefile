# The tasks of this project. Every one of them makes .venv first when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test coverage test-rest test-oldest test-ray test-all test-fast trackers gpu soak check fmt golden bench clean

demo: $(VENV)/installed
	$(BIN)/mlic demo

# Two files of tests at a time: they wait for processes more than they compute. Each file's tests share what they need.
# Threads of OpenMP sleep while they wait: two networks that train on the same two CPUs are three times as fast then.
export OMP_WAIT_POLICY ?= passive
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=30

# What a user needs to trust an installation: every command once at least. With COVERAGE=1 it also says how much of the
# package these tests run, and fails below 90%.
test: $(VENV)/installed
ifdef COVERAGE
	rm -rf .coverage && mkdir .coverage
	$(BIN)/coverage run $(patsubst $(BIN)/python,,$(PYTEST)) -m "not slow or smoke"
	$(BIN)/coverage combine -q
	$(BIN)/coverage report
else
	$(PYTEST) -m "not slow or smoke"
endif

coverage:
	$(MAKE) test COVERAGE=1

# The others: kills, SLURM, recipes, the README.
test-rest: $(VENV)/installed
	$(PYTEST) -m "slow and not smoke"

test-all: test test-rest test-oldest

# The smoke tests with the oldest versions that pyproject.toml claims, Ray's too, in a folder before site-packages.
test-oldest: $(VENV)/installed
	cmp -s oldest.txt .oldest/oldest.txt || (rm -rf .oldest && $(BIN)/python -m pip install -q --no-deps --target .oldest \
	  -r oldest.txt && cp oldest.txt .oldest/)
	PYTHONPATH="$(CURDIR)/.oldest" $(PYTEST) -m smoke

# The same with another version of Ray alone: make test-ray RAY=2.61.0
test-ray: $(VENV)/installed
	@test -n "$(RAY)" || { echo "give a version: make test-ray RAY=2.61.0"; exit 2; }
	test -d .ray/$(RAY) || $(BIN)/python -m pip install -q --no-deps --target .ray/$(RAY) ray==$(RAY)
	PYTHONPATH="$(CURDIR)/.ray/$(RAY)" $(PYTEST) -m smoke

# A server of MLflow for the tests of mlic log, in a virtual environment of its own, as it needs other versions.
trackers:
	test -x .trackers/bin/mlflow || ($(PYTHON) -m venv .trackers && .trackers/bin/python -m pip install -q mlflow)

# On a machine with a GPU: the tests that need one, and the benchmark, which writes benchmarks/RESULTS.md. Without .venv it
# takes a Python that has the dependencies: make gpu PYTHON=python3
GPU_PYTHON = $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
gpu:
	$(GPU_PYTHON) -m pytest -q -p no:cacheprovider -m gpu --durations=10 tests/test_gpu.py
	$(GPU_PYTHON) -m benchmarks.gpu

# Without the tests that start Ray, train, kill and resume.
test-fast: $(VENV)/installed
	$(BIN)/python -m pytest -m "not ray and not slow"

# The tests that kill at random moments, with as many kills as it takes to be sure.
soak: $(VENV)/installed
	MLIC_EXAMPLES=1000 $(BIN)/python -m pytest tests/data/test_label_fuzz.py
	MLIC_KILLS=20 $(BIN)/python -m pytest tests/end_to_end/test_kill.py tests/end_to_end/test_kill_nodes.py

GENERATED := docs/data.md docs/thresholds.md docs/reference/commands.md docs/reference/settings.md
check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell README.md CHANGELOG.md docs mlic jobs slurm cluster tests benchmarks
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cog --check $(GENERATED)

fmt: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Rewrite what tests compare whole: help texts, sbatch files, the tables of the documents. Look at the diff before you commit it.
golden: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.golden
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cog -r $(GENERATED)

# With other loaders and writers where they are installed: see benchmarks/requirements.txt.
bench: $(VENV)/installed
	$(BIN)/python -m benchmarks.pack
	$(BIN)/python -m benchmarks.loader
	$(BIN)/python -m benchmarks.plan
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.start
	$(BIN)/python -m benchmarks.train
	$(BIN)/python -m benchmarks.tune
	$(BIN)/python -m benchmarks.predict
	$(BIN)/python -m benchmarks.report

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mlic needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) mlic-demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
