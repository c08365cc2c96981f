# Two commands set everything up on a fresh machine with Python 3.11 or 3.12:
#   make reproduce   a small version of each paper's experiment, with tables and figures
#   make test        the tests
PYTHON ?= python3
VENV ?= .venv
# glibc: memory in large pages, which XLA asks for anew at each step.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
INSTALLED = $(VENV)/.installed

.PHONY: reproduce test lint types parity slow gpu aot

reproduce: $(INSTALLED)
	$(VENV)/bin/python -m born_mlp.train configs/born_mlp/quickstart.py
	$(VENV)/bin/python -m molt5_multitask.train configs/molt5_multitask/quickstart.py
	$(VENV)/bin/python -m alignment.pipeline configs/alignment/quickstart.py

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n auto -m "not slow and not gpu and not aot and not parity"

slow: $(INSTALLED)
	$(VENV)/bin/python -m pytest -m slow

gpu: $(INSTALLED)
	JAX_PLATFORMS=cuda,cpu $(VENV)/bin/python -m pytest -m gpu

aot: $(INSTALLED)
	$(VENV)/bin/python -m pip install -c constraints.txt -e ".[aot]"
	$(VENV)/bin/python -m pytest -m aot

parity: $(INSTALLED)
	$(VENV)/bin/python -m pip install -c constraints.txt -e ".[parity]"
	$(VENV)/bin/python -m pytest -m parity

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(INSTALLED)
	$(VENV)/bin/mypy

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -c constraints.txt -e ".[dev]"
	touch $@
