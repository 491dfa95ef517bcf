# `make demo` and `make test` need Python and a compiler; with nvcc on the machine they build the CUDA extension too.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

demo: extras := examples
demo: .venv
	$(install)
	$(BIN)/python examples/mnist.py

# -P and --import-mode=importlib (pyproject.toml) keep the source tree off sys.path: the installed package is tested.
test: extras := test,examples
test: .venv
	$(install)
	$(BIN)/python -P -m pytest -q tests

lint: extras := test,examples
lint: .venv
	$(install)
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
$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt '.[$(extras)]'
endef
