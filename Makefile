# Two commands: `make book` and `make test`. Both set up what is missing, inside this folder.
.DEFAULT_GOAL := help
.PHONY: help environment book test lint format colab course slides
MAKEFLAGS += --no-print-directory

VENV := .venv/bin/python
# How pytest is called; for example: make test PYTEST_ARGS="-k packaging"
PYTEST_ARGS ?= -n 2 --dist loadfile

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
	@echo "make book    execute the notebooks (lite preset) and build the pages: _build/html/index.html"
	@echo "make test    build the book where it is stale, then run the tests"
	@echo "make lint    ruff (code and notebooks) and mypy"
	@echo "make format  format the code; in notebooks strip outputs and renew the install cell"
	@echo "make course  the assignments: hand-outs, solutions, autograders in _build/course"
	@echo "make slides  slides of each chapter in _build/slides, from what make book has executed"
	@echo "make colab   run every notebook in an environment of Colab's own versions (large, slow)"
	@echo "Set PYTHON=... to choose the interpreter that .venv is made with (3.11 to 3.13)."

# The first interpreter of a fitting version that really runs (a shim may exist and fail), and can
# make a virtual environment.
environment:
	@for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python); do \
	  if "$$python" -c 'import shutil, sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14)); ' \
	      >/dev/null 2>&1 && \
	     "$$python" -c 'import shutil; shutil.which("uv") or __import__("ensurepip")' >/dev/null 2>&1; \
	  then exec "$$python" book/environment.py; fi; \
	done; \
	echo "No working Python 3.11, 3.12 or 3.13 with venv was found (tried: $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python))." >&2; \
	echo "Install one, or name one: make book PYTHON=/path/to/python3.12" >&2; \
	exit 1

book: environment
	@$(VENV) book/build.py

test: book
	@$(VENV) -m pytest $(PYTEST_ARGS)

course: environment
	@$(VENV) book/course.py

slides: book
	@$(VENV) book/slides.py

colab: environment
	$(VENV) book/colab_check.py

lint: environment
	$(VENV) -m ruff check .
	$(VENV) -m ruff format --check .
	$(VENV) -m mypy

format: environment
	$(VENV) book/colab.py
	$(VENV) -m ruff format .
	$(VENV) -m ruff check --fix .
	$(VENV) -m nbstripout book/*.ipynb book/assignments/*.ipynb
