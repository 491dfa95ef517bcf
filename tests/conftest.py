"""Fixtures for all tests; GPU tests are skipped by name where there is no CUDA device."""

import zlib

import pytest
import torch


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _fresh_random_state(request):
    """Reproducible, but different for every test, whatever order they run in."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(autouse=True)
def _no_backend_from_the_environment(monkeypatch):
    monkeypatch.delenv("MUON_KERNELS_BACKEND", raising=False)


@pytest.fixture
def one_thread():
    """As the examples' commands set it on a CPU, which is why it is restored here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
