# make demo   the whole study on a phantom cohort, on this machine      make ui      the Dagster UI on the same state
# make demo STUDY=phantom-full   another synthetic study, on a state of its own (make ui STUDY=phantom-full shows it)
# make init DATA=folder   a study file for the patients in a folder (SMALL=1: minutes on a CPU; ARGS=--help: more)
# make study STUDY=file.yaml DATA=folder   that study on this machine, to its report      make validate STUDY=file.yaml
# make test   lint, types, documentation and tests                      make bench   ratios against other implementations
# make docs   the documentation, in .site/index.html; a warning fails it   make coverage   of the packages with quick tests
# make env    what the console needs: eval "$(make -s env)", or "$(make -s env STUDY=file.yaml)"
# make clean  remove the demo's state (make distclean: and the environment)
# PORT=3010 make ui   another port than 3000 (and 3001, for the report), for demo and study too

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STUDY := demo
STATE := .state$(if $(filter-out demo,$(STUDY)),-$(basename $(notdir $(STUDY))))
PORT ?= 3000
INSTALLED := $(VENV)/.installed
# Three on two cores: many tests wait for processes and stores.
PYTEST := $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0
MEASURED := $(addprefix curvas_assets_tests/,cohort ensembling statistics test_study_configuration.py)

export DAGSTER_HOME := $(abspath $(STATE))/dagster
export CURVAS_SCRATCH := $(abspath $(STATE))/scratch
# Images set it for small layers; here it would make each of Dagster's many processes compile everything anew, 7 s of CPU.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo init validate study ui env test coverage lint docs bench clean distclean install lock

demo: $(INSTALLED)
	@$(BIN)/python -m curvas_assets.local.demo --study $(STUDY) --state $(STATE) --port $(PORT)

init: $(INSTALLED)
	@$(BIN)/python -m curvas_assets.local.init $(if $(DATA),"$(DATA)") $(if $(SMALL),--small) $(ARGS)

validate: $(INSTALLED)
	@$(BIN)/python -m curvas_assets.local.validate "$(STUDY)" $(if $(DATA),--data "$(DATA)")

study: $(INSTALLED)
	$(if $(filter demo,$(STUDY)),$(error name the study file: make study STUDY=file.yaml DATA=folder; synthetic patients: make demo))
	@$(BIN)/python -m curvas_assets.local.study --study "$(STUDY)" --data "$(DATA)" --state $(STATE) --port $(PORT)

ui: $(INSTALLED)
	@$(BIN)/python -m curvas_assets.local.ui --study $(STUDY) --state $(STATE) --port $(PORT)

# Dagster's programs first on the PATH, on the state of demo and ui; a fresh state gets its folder and instance file.
env:
	@test -x $(BIN)/python || { echo "run make install first" >&2; exit 1; }
	@mkdir -p -m 700 $(STATE) && mkdir -p $(DAGSTER_HOME) && { test -e $(DAGSTER_HOME)/dagster.yaml || cp dagster.yaml $(DAGSTER_HOME)/; }
	@echo 'export PATH="$(abspath $(BIN)):$$PATH" DAGSTER_HOME="$(DAGSTER_HOME)" CURVAS_SCRATCH="$(CURVAS_SCRATCH)"'
	@echo "export CURVAS_STUDY=$(STUDY)"

test: $(INSTALLED) lint docs
	$(PYTEST) $(MEASURED:%=--ignore=%)
	@$(MAKE) --no-print-directory coverage

# Tracing costs a third more time (36 % on test_families.py), so only packages with quick tests are measured.
coverage: $(INSTALLED)
	$(PYTEST) --cov --cov-report=term $(MEASURED)

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

install: $(INSTALLED)

# torch and torchvision first and together: nnunetv2 needs both, of the same build.
$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 5))' || { echo "Python 3.11.5 or newer is needed: make PYTHON=python3.12"; exit 1; }
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
	rm -rf $(VENV) .site .coverage .pytest_cache .ruff_cache .hypothesis
