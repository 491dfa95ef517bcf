"""Loading muon_kernels._C: there, not built, and built but broken are three different things."""

import importlib
import sys
import types

import pytest
import torch

from muon_kernels import extension
from muon_kernels.backends import cuda


@pytest.fixture(autouse=True)
def fresh_cache():
    extension._outcome.cache_clear()
    yield
    extension._outcome.cache_clear()


@pytest.fixture
def importing(monkeypatch):
    """Makes the import of muon_kernels._C return a module or raise."""

    def replace(outcome):
        def import_module(name):
            assert name == "muon_kernels._C"
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(extension.importlib, "import_module", import_module)

    return replace


NOT_BUILT = ModuleNotFoundError("No module named 'muon_kernels._C'", name="muon_kernels._C")
BROKEN = [
    ImportError("undefined symbol: nothing_of_ours"),
    ModuleNotFoundError("No module named 'elsewhere'", name="elsewhere"),
    OSError("file too short"),
]


def test_loads_once(importing):
    module = types.ModuleType("muon_kernels._C")
    importing(module)
    assert extension.load() is module
    importing(NOT_BUILT)
    assert extension.load() is module
    assert extension.unavailable_reason() is None


def test_not_built_is_a_reason_and_not_broken(importing):
    importing(NOT_BUILT)
    assert "not built" in extension.unavailable_reason()
    assert not extension.is_broken()
    with pytest.raises(extension.ExtensionUnavailable, match="not built"):
        extension.load()


@pytest.mark.parametrize("error", BROKEN, ids=lambda e: str(e))
def test_broken_raises_on_every_use_with_its_cause(importing, error):
    importing(error)
    assert extension.is_broken()
    for _ in range(2):
        with pytest.raises(extension.ExtensionUnavailable, match="built but does not import") as raised:
            extension.load()
        assert raised.value.__cause__ is error


def test_a_missing_file_and_a_corrupt_file_are_told_apart(monkeypatch, tmp_path):
    """The same with the import system itself instead of a stand-in."""
    package = types.ModuleType("some_package")
    package.__path__ = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, "some_package", package)
    monkeypatch.setattr(extension, "_MODULE", "some_package._C")
    assert "not built" in extension.unavailable_reason()
    (tmp_path / f"_C{importlib.machinery.EXTENSION_SUFFIXES[0]}").write_bytes(b"not a shared library")
    importlib.invalidate_caches()
    extension._outcome.cache_clear()
    assert extension.is_broken()


def test_cuda_backend_falls_back_only_when_not_built(importing):
    device = torch.device("cuda", 0)
    importing(NOT_BUILT)
    assert "not built" in cuda.unavailable_reason("prologue", device, ())
    importing(BROKEN[0])
    extension._outcome.cache_clear()
    with pytest.raises(extension.ExtensionUnavailable):
        cuda.unavailable_reason("prologue", device, ())


def test_cuda_backend_refuses_other_devices_and_ops_without_loading(importing):
    importing(BROKEN[0])
    assert "cpu" in cuda.unavailable_reason("prologue", torch.device("cpu"), ())
    assert "no CUDA kernel" in cuda.unavailable_reason("no_such_op", torch.device("cuda", 0), ())
