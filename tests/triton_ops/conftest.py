"""Every op on the Triton backend: on the GPU, or in Triton's interpreter on the CPU (see test_triton_interpreter.py).

float16 and float32 in both; bfloat16 on the GPU alone, because the interpreter multiplies bfloat16 bit patterns.
"""

import pytest

from muon_kernels import use_backend


@pytest.fixture(autouse=True)
def on_triton_backend(monkeypatch):
    """Without what was planned for the configurations of other tests."""
    from muon_kernels.backends.triton import gemm

    monkeypatch.setattr(gemm, "_plans", {})
    with use_backend("triton"):
        yield
