# `make chat` and `make test` are all a newcomer needs: Python 3.11 or newer with venv, g++ and make.
PYTHON ?= python3
VENV   ?= .venv
PROMPT ?= hello
MODEL  ?=
WIDE   ?= build/wide.gguf

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
CPP := $(shell find cpp_ext -name '*.cpp' -o -name '*.h')

.PHONY: venv build chat test test-all sanitize lint format bench clean help

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

venv: $(VENV)/installed  ## a virtual environment with hybrid-k2 in it, editable

$(VENV)/installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch setuptools wheel pybind11
	$(PIP) --no-build-isolation -e ".[test]"
	touch $@

build: venv  ## compile what changed in cpp_ext, warnings are errors
	HYBRID_K2_STRICT_BUILD=1 $(BIN)/python setup.py -q build_ext --inplace

chat: venv  ## one answer of the demo model, or of MODEL=FILE, to PROMPT="..."
	$(BIN)/hybrid-k2 chat $(MODEL) --prompt "$(PROMPT)"

test: build  ## every test that takes under a second or two
	$(BIN)/pytest -q -m "not slow and not sanitizer"

test-all: build  ## every test, kernels at full shapes and the GPU's among them
	$(BIN)/pytest -q -m "not sanitizer"

sanitize: venv  ## the kernels' tests under AddressSanitizer, the thread pool's under ThreadSanitizer
	$(BIN)/pytest -q -m sanitizer tests/kernels

lint: venv  ## what CI checks besides tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(if $(CPP),$(BIN)/clang-format --dry-run --Werror $(CPP))

format: venv  ## rewrite the sources as `make lint` wants them
	$(BIN)/ruff check -q --fix .
	$(BIN)/ruff format -q .
	$(if $(CPP),$(BIN)/clang-format -i $(CPP))

bench: build  ## decode speed beside llama.cpp's, on a file of true K2 width (11 GB, made on first use)
	$(PIP) llama-cpp-python
	test -e $(WIDE) || $(BIN)/python benchmarks/make_wide_gguf.py $(WIDE)
	$(BIN)/python benchmarks/decode_vs_llamacpp.py $(WIDE)

clean:  ## remove everything that is built, but not the virtual environment
	rm -rf build dist *.egg-info hybrid_k2/_cpu*.so
