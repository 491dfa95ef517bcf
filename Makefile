# `make demo` and `make test` need Python and a compiler; with nvcc on the machine they build the CUDA extension too.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench clean

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

bench: extras := bench
bench: .venv
	$(install)
	mkdir -p results/local
	$(BIN)/python -m pytest -q bench/bench_orthogonalize.py bench/bench_step.py bench/bench_ops.py --budget 540 \
		--benchmark-quiet --benchmark-json=results/local/bench.json
	$(BIN)/python -m bench.report results/local/bench.json --out results/local

clean:
	rm -rf .venv build dist *.egg-info

.venv:
	$(PYTHON) -m venv .venv

# setuptools packs whatever an earlier build left in build/lib*: a module that was renamed would stay in the package.
define install
rm -rf build/lib*
$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt '.[$(extras)]'
endef
