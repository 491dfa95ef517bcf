"""The backend "cuda" without a GPU: csrc/bindings.cpp over csrc/api.h in plain loops on host memory (kernels.cpp)."""

import importlib.util
import subprocess
import sysconfig

import pytest
import torch
from test_build import ROOT

from muon_kernels import extension, refusals
from muon_kernels.backends import cuda, cuda_chains, cuda_products, cuda_wave


@pytest.fixture(scope="session")
def host_module(nvcc, tmp_path_factory):
    """The extension module, its kernels replaced."""
    pybind11 = pytest.importorskip("pybind11")
    folder = tmp_path_factory.mktemp("host")
    includes = [ROOT / "csrc", pybind11.get_include(), sysconfig.get_path("include")]
    flags = ["-std=c++17", "-Xcompiler=-fPIC,-fvisibility=hidden", *(f"-I{path}" for path in includes)]
    sources = [*(ROOT / "csrc").glob("*.cpp"), ROOT / "tests" / "host" / "kernels.cpp"]
    objects = [folder / f"{source.name}.o" for source in sources]
    compilers = [
        subprocess.Popen([nvcc, *flags, "-c", source, "-o", target])
        for source, target in zip(sources, objects, strict=True)
    ]
    assert [compiler.wait() for compiler in compilers] == [0] * len(sources)
    target = folder / "_C.so"
    subprocess.run([nvcc, "-shared", "-cudart=none", *objects, "-o", target], check=True)
    spec = importlib.util.spec_from_file_location("host._C", target)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def on_the_host(host_module, monkeypatch):
    """Makes the backend "cuda" run on CPU tensors."""
    reason = cuda.unavailable_reason
    monkeypatch.setattr(extension, "load", lambda: host_module)
    monkeypatch.setattr(extension, "unavailable_reason", lambda: None)
    monkeypatch.setattr(cuda, "unavailable_reason", lambda op, _, lists: reason(op, torch.device("cuda"), lists))
    for module in (cuda, cuda_products):
        monkeypatch.setattr(module, "capability", lambda _: 90)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda _: 0, raising=False)
    # Objects of the extension's own module, where there is one, and what its backend was found to take.
    kept = (cuda_chains._items, cuda_wave._wave, refusals._select)
    for function in kept:
        function.cache_clear()
    yield
    for function in kept:
        function.cache_clear()
