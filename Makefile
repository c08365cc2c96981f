# Two commands set everything up on a fresh machine with Python 3.11 to 3.14:
#   make reproduce   a small version of each paper's experiment, with tables and figures
#   make test        the tests

# The newest Python that runs and can make an environment: a shim may be there and fail.
ifndef PYTHON
PYTHON := $(shell for python in python3.14 python3.13 python3.12 python3.11 python3; do \
  if $$python -c "import ensurepip, venv" 2>/dev/null; then echo $$python; break; fi; done)
endif
VENV ?= .venv
# Which tests: all, or for example TESTS=tests/common.
TESTS ?=
# glibc: memory in large pages, which XLA asks for anew at each step.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
INSTALLED = $(VENV)/.installed

.PHONY: reproduce test lint types parity slow gpu aot constraints

reproduce: $(INSTALLED)
	$(VENV)/bin/python -m born_mlp.train configs/born_mlp/quickstart.py
	$(VENV)/bin/python -m molt5_multitask.train configs/molt5_multitask/quickstart.py
	$(VENV)/bin/python -m alignment.pipeline configs/alignment/quickstart.py

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n auto -m "not slow and not gpu and not aot and not parity" $(TESTS)

slow: $(INSTALLED)
	$(VENV)/bin/python -m pytest -m slow $(TESTS)

gpu: $(INSTALLED)
	JAX_PLATFORMS=cuda,cpu $(VENV)/bin/python -m pytest -m gpu $(TESTS)

aot: $(INSTALLED)
	$(VENV)/bin/python -m pip install -c constraints.txt -e ".[aot]"
	$(VENV)/bin/python -m pytest -m aot $(TESTS)

parity: $(INSTALLED)
	$(VENV)/bin/python -m pip install -c constraints.txt -e ".[parity]"
	$(VENV)/bin/python -m pytest -m parity $(TESTS)

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(INSTALLED)
	$(VENV)/bin/mypy

# The newest versions that pyproject.toml allows, for every Python and platform, in one file.
constraints: $(INSTALLED)
	$(VENV)/bin/python -m pip install uv
	$(VENV)/bin/uv pip compile pyproject.toml --universal --python-version 3.11 --upgrade \
	  --extra dev --extra aot --no-annotate --custom-compile-command "make constraints" \
	  --output-file constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11 to 3.14 with venv was found; set PYTHON=" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -c constraints.txt -e ".[dev]"
	touch $@
