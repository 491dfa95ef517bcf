# `make demo` and `make test` need Python and a compiler; with nvcc on the machine they build the CUDA extension too.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

demo: .venv
	$(call install,examples)
	$(BIN)/python examples/mnist.py

# -P and --import-mode=importlib (pyproject.toml) keep the source tree off sys.path: the installed package is tested.
test: .venv
	$(call install,test)
	$(BIN)/python -P -m pytest -q tests

lint: .venv
	$(call install,test)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info

.venv:
	$(PYTHON) -m venv .venv

# setuptools packs whatever an earlier build left in build/lib*: a module that was renamed would stay in the package.
define install
rm -rf build/lib*
$(BIN)/pip install --quiet -c constraints.txt '.[$(1)]'
endef
