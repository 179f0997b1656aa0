# Everything runs in .venv; nothing outside this folder is touched.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Repository configuration of the environment, not ours, decides where packages come from.
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q

# Test processes, one torch thread each; `make test WORKERS=0` runs all tests in one process.
WORKERS ?= auto
# Compiled files are kept: many tests start processes, which else compile all modules again.
PYTEST  := env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: demo test test-slow check site coverage setup clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is %s" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@echo "setting up $(VENV) (about two minutes)"
	@start=$$(date +%s); \
	$(PYTHON) -m venv $(VENV) && \
	$(PIP) install -c constraints.txt -e '.[dev]' && \
	echo "set up in $$(( $$(date +%s) - start )) s"
	@touch $@

demo: setup
	$(BIN)/python scripts/demo.py

test: setup
	$(PYTEST)

test-slow: setup
	$(PYTEST) -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest -m browser
	$(MAKE) --no-print-directory site

# Warnings and dead links are errors; open build/site/index.html.
site: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet -f docs/site/mkdocs.yml

# Share of the package's lines that the default tests run; build/coverage/index.html has them.
coverage: setup
	$(PYTEST) --cov --cov-report=term:skip-covered --cov-report=html:build/coverage

clean:
	rm -rf $(VENV) build *.egg-info
