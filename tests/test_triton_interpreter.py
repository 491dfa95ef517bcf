"""Runs tests in Triton's interpreter, in a process of its own: it must be on before Triton is imported."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

triton = pytest.importorskip("triton")

HERE = Path(__file__).parent

# A loop bound that is an argument becomes an int through a conversion that NumPy 2.4 no longer makes.
INCOMPATIBLE = np.lib.NumpyVersion(np.__version__) >= "2.4.0" and triton.__version__ < "3.7"

OPS = sorted(f"triton_ops/{file.name}" for file in HERE.glob("triton_ops/test_*.py"))
SUITES = (*OPS, "test_orthogonalize_whole.py")


@pytest.fixture(scope="module")
def processes():
    """One for each of SUITES, all at once: each keeps one core busy while there are as many."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": HERE.parent}
    started = {tests: subprocess.Popen([*command, str(HERE / tests)], env=environment, **options) for tests in SUITES}
    yield started
    for process in started.values():
        process.kill()


@pytest.mark.skipif(INCOMPATIBLE, reason="the interpreter of Triton 3.6 and older needs NumPy 2.3 or older")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="is a process that these run in")
@pytest.mark.parametrize("tests", SUITES)
def test_in_the_interpreter(tests, processes):
    output, _ = processes[tests].communicate()
    assert processes[tests].returncode == 0, output[-7000:]
