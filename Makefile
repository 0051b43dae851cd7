# make demo   the whole study on a phantom cohort, on this machine      make ui      the Dagster UI on the same state
# make test   lint, types, definitions and tests                        make bench   ratios against other implementations
# make clean  remove the demo's state (make distclean: and the environment)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STATE := .state
INSTALLED := $(VENV)/.installed

export DAGSTER_HOME := $(CURDIR)/$(STATE)/dagster
export CURVAS_SCRATCH := $(CURDIR)/$(STATE)/scratch

.PHONY: demo ui test lint bench clean distclean install lock

demo: $(INSTALLED)
	@$(BIN)/python -m curvas_assets.local.demo --state $(STATE)

ui: $(INSTALLED)
	@$(BIN)/python -m curvas_assets.local.ui --state $(STATE)

test: $(INSTALLED) lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

install: $(INSTALLED)

# torch and torchvision first and together: nnunetv2 needs both, of the same build.
$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile $$(grep -E '^(torch|torchvision)==' requirements.lock)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

lock: # what is installed now becomes what is pinned
	$(BIN)/pip freeze --exclude-editable --exclude curvas-assets | grep -vE '^(nvidia-|cuda-|triton==)' > requirements.lock

clean:
	@if test -x $(BIN)/python && test -d $(STATE); then $(BIN)/python -m curvas_assets.local.server stop --state $(STATE) || true; fi
	rm -rf $(STATE)

distclean: clean
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
