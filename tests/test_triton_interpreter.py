"""Runs test_triton_ops.py in Triton's interpreter, in a process of its own: it must be on before Triton is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

OPS = Path(__file__).with_name("test_triton_ops.py")


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="is the process that test_triton_ops.py runs in")
def test_ops_in_the_interpreter():
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(OPS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=OPS.parent.parent)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
