"""Fixtures for all tests; GPU tests are skipped by name where there is no CUDA device."""

import gc
import importlib.util
import os
import sys
import zlib
from pathlib import Path

import pytest
import torch
from distributed_pool import Pool

from muon_kernels import use_backend

sys.path.append(str(Path(__file__).parents[1]))  # for bench; last, so that an installed muon_kernels is the one tested


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    if reporter := config.pluginmanager.get_plugin("terminalreporter"):
        config.pluginmanager.register(_FailuresAtOnce(reporter))


class _FailuresAtOnce:
    """A line for every failure when it happens: the summary is never reached by a run that is cut off."""

    def __init__(self, reporter):
        self._reporter = reporter

    def pytest_runtest_logreport(self, report):
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = crash.message.splitlines()[0] if crash and crash.message else report.when
            self._reporter.write_line(f"\nFAILED {report.nodeid}: {reason}")


@pytest.fixture(scope="session")
def setup_py():
    """setup.py as a module."""
    path = Path(__file__).parent.parent / "setup.py"
    spec = importlib.util.spec_from_file_location("muon_kernels_setup", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def nvcc(setup_py):
    """A C++ compiler that knows where CUDA's headers are."""
    found = setup_py.find_nvcc(os.environ)
    if found is None:
        pytest.skip("needs nvcc")
    return found


@pytest.fixture
def on_hopper():
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs compute capability 9.0")


@pytest.fixture
def on_cuda_backend():
    with use_backend("cuda"):
        yield


@pytest.fixture
def huge_tensors():
    """For tests of many GB: hands them back to the card, which other processes may be testing on."""
    yield
    torch.cuda.empty_cache()


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """These matrices are too small to share: a second thread mostly waits, for long where other work has the core."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _collected_once():
    """What lives when a module's tests begin is mostly imported code, which every collection would visit again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _fresh_random_state(request):
    """Reproducible, but different for every test, whatever order they run in."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(autouse=True)
def _no_backend_from_the_environment(monkeypatch):
    monkeypatch.delenv("MUON_KERNELS_BACKEND", raising=False)


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """`ranks(world)`: that many processes with gloo, started when they are first asked for."""
    pools = {}

    def pool(world):
        if world not in pools:
            pools[world] = Pool(world, str(tmp_path_factory.mktemp("rendezvous") / "file"))
        return pools[world]

    yield pool
    for started in pools.values():
        started.close()
