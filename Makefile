# `make study` and `make test` work on a bare machine: Python >= 3.11, make and git.
# Everything is installed into .venv, from the versions and hashes of requirements.lock.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP_FLAGS := -qq --disable-pip-version-check --no-input
# Tests run in as many processes as there are cores.
WORKERS ?= auto
# Arguments of the commands: make study ARGS="--preset default", make test ARGS="-k flow".
ARGS ?=

# Compiled JAX programs are kept, so that a second run is fast.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.2

# Tests compile thousands of programs and run each for moments: XLA need not optimize them. What users
# get, optimized, is tested by `make test-slow` and `make test-newest`.
QUICK_COMPILES := --xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0 \
	--xla_llvm_disable_expensive_passes=true

QUICK_TESTS := -m "not slow and not long"

.PHONY: help install study test test-long test-slow lint format bench peer docs lock test-oldest test-newest clean

help:
	@echo "make study         train networks on digits and predict them: an answer, and a report to read"
	@echo "make install       the environment in .venv, which every other target makes where it is missing"
	@echo "make test          the test suite"
	@echo "make test-long     tests of many seconds"
	@echo "make test-slow     tests of minutes"
	@echo "make lint          ruff and pyright"
	@echo "make format        let ruff rewrite"
	@echo "make bench         speed, as ratios against the naive way in the same run"
	@echo "make peer          neural-tangents in an environment of its own: make bench then times it too"
	@echo "make docs          the pages of docs/ and the API reference, in site/"
	@echo "make test-oldest   the suite on the lowest direct versions"
	@echo "make test-newest   the suite on the newest Python here and the newest releases"
	@echo "make lock          resolve the lock files anew"
	@echo "make clean         remove what these made, environments too"

install: $(VENV)/.ready

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(call require-python,$(PYTHON))
	@echo "Installing into $(VENV) (a minute or so) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PY) -m pip install $(PIP_FLAGS) --require-hashes --requirement requirements.lock
	@$(PY) -m pip install $(PIP_FLAGS) --no-deps --no-build-isolation --editable .
	@touch $@

study: $(VENV)/.ready
	@$(PY) -m scripts study --preset quick $(ARGS)

test: $(VENV)/.ready
	XLA_FLAGS="$(QUICK_COMPILES)" $(PY) -m pytest -n $(WORKERS) $(QUICK_TESTS) $(ARGS)

test-long: $(VENV)/.ready
	XLA_FLAGS="$(QUICK_COMPILES)" $(PY) -m pytest -n $(WORKERS) -m "long and not slow" $(ARGS)

test-slow: $(VENV)/.ready
	$(PY) -m pytest -n $(WORKERS) -m slow $(ARGS)

lint: $(VENV)/.ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

format: $(VENV)/.ready
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(VENV)/.ready
	@$(PY) -m scripts benchmark $(ARGS)

# The field's standard tool, whose last versions run on Python 3.9 to 3.12 only.
peer: .venv-peer/.ready

.venv-peer/.ready: requirements-peer.lock
	@$(PYTHON) -m venv --clear .venv-peer
	@.venv-peer/bin/python -m pip install $(PIP_FLAGS) --require-hashes --no-deps --requirement requirements-peer.lock
	@touch $@

docs: $(VENV)/.ready
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

# --- the ends of the range of supported versions -------------------------------------------------

.venv-oldest/.ready: requirements-oldest.lock pyproject.toml
	@$(call require-python,$(PYTHON))
	@$(PYTHON) -m venv --clear .venv-oldest
	@.venv-oldest/bin/python -m pip install $(PIP_FLAGS) --require-hashes --requirement requirements-oldest.lock
	@.venv-oldest/bin/python -m pip install $(PIP_FLAGS) --no-deps --no-build-isolation --editable .
	@touch $@

test-oldest: .venv-oldest/.ready
	XLA_FLAGS="$(QUICK_COMPILES)" .venv-oldest/bin/python -m pytest -n $(WORKERS) $(QUICK_TESTS) $(ARGS)

# Not locked on purpose: it shows what a user gets who installs today.
.venv-newest/.ready: pyproject.toml
	@newest=$$($(newest-python)); echo "Newest Python here: $$newest"; "$$newest" -m venv --clear .venv-newest
	@.venv-newest/bin/python -m pip install $(PIP_FLAGS) --upgrade pip
	@.venv-newest/bin/python -m pip install $(PIP_FLAGS) --upgrade --editable '.[test]'
	@touch $@

test-newest: .venv-newest/.ready
	.venv-newest/bin/python -m pytest -n $(WORKERS) $(QUICK_TESTS) $(ARGS)

# Universal: one file serves every Python >= 3.11 and every platform. No addresses go in.
UV = .cache/uv/bin/uv pip compile --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --quiet
UV_COMPILE = $(UV) pyproject.toml --all-extras --group build

lock:
	@test -x .cache/uv/bin/uv || { $(PYTHON) -m venv .cache/uv && .cache/uv/bin/pip install $(PIP_FLAGS) uv; }
	$(UV_COMPILE) --upgrade --output-file requirements.lock
	$(UV_COMPILE) --upgrade --resolution lowest-direct --output-file requirements-oldest.lock
	$(UV) requirements-peer.in --upgrade --no-deps --output-file requirements-peer.lock

clean:
	rm -rf .venv .venv-oldest .venv-newest .venv-peer .cache site

define require-python
$(1) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python is " + sys.version.split()[0] + ", expected 3.11 or newer: make PYTHON=python3.12 ...")'
endef

# The highest python3.N that runs, on the path or among pyenv's.
define newest-python
for minor in 19 18 17 16 15 14 13 12 11; do \
  for candidate in python3.$$minor $$(ls -d $$HOME/.pyenv/versions/3.$$minor.*/bin/python 2>/dev/null); do \
    if "$$candidate" -c 'import venv, ensurepip' 2>/dev/null; then echo "$$candidate"; exit 0; fi; \
  done; \
done; echo "$(PYTHON)"
endef
