"""pytest-benchmark for a GPU: options, order of importance, the device's clock, and what else goes into the file."""

from __future__ import annotations

import signal
from collections.abc import Generator
from typing import Any

import pytest
import torch

from . import environment
from .lab import Lab

_LAB = pytest.StashKey[Lab]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("muon_kernels benchmarks")
    group.addoption("--budget", type=float, help="seconds after which nothing new is started")
    group.addoption("--providers", help="comma-separated prefixes of the columns to run; default: all")
    group.addoption("--cells", help="comma-separated substrings of the rows to run; default: all")
    group.addoption("--device", choices=("cuda", "cpu"), help="default: cuda if there is one")
    group.addoption("--smoke", action="store_true", help="tiny shapes: does everything run?")
    group.addoption("--commit", help="the commit to name in the file, where the tree is not a repository")


def pytest_configure(config: pytest.Config) -> None:
    device = config.getoption("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    config.stash[_LAB] = Lab(torch.device(device), smoke=config.getoption("smoke"), budget=config.getoption("budget"))


def pytest_sessionstart(session: pytest.Session) -> None:
    """A run that is told to end (by `timeout`, by a scheduler) ends after this measurement and writes its file."""

    def stop(number: int, frame: object) -> None:
        session.shouldstop = f"told to end by signal {number}"

    signal.signal(signal.SIGTERM, stop)


@pytest.fixture(scope="session")
def lab(pytestconfig: pytest.Config) -> Lab:
    """The run; its ceilings are measured first, before anything else is in memory."""
    lab = pytestconfig.stash[_LAB]
    _ = lab.ceilings
    return lab


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    lab = config.stash[_LAB]
    wanted = [item for item in items if isinstance(item, pytest.Function) and _is_wanted(config, item)]
    # First what matters most: the strongest providers in every cell, then the others; files as they are listed.
    wanted.sort(key=_importance)
    for item in wanted:
        item.add_marker(pytest.mark.benchmark(timer=lab.clock.read, disable_gc=True, warmup=False))
    items[:] = wanted


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Shows each number at once: the file is written at the end, which a crash never reaches."""
    result = yield
    news, reporter = item.config.stash[_LAB].news, item.config.pluginmanager.get_plugin("terminalreporter")
    for line in news:
        assert reporter is not None
        reporter.write_line(line)
    news.clear()
    return result


def _is_wanted(config: pytest.Config, item: pytest.Function) -> bool:
    params = _params(item)
    providers, cells = config.getoption("providers"), config.getoption("cells")
    return (
        (not providers or params["provider"].name.startswith(tuple(providers.split(","))))
        and (not cells or any(part in str(params["cell"]) for part in cells.split(",")))
        and (params["mode"] == "call" or config.stash[_LAB].device.type == "cuda")
    )


def _importance(item: pytest.Function) -> int:
    return _params(item)["provider"].tier


def _params(item: pytest.Function) -> dict[str, Any]:
    return dict(item.callspec.params)


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    lab = config.stash[_LAB]
    return environment.software() | environment.hardware(lab.device) | {"gpu_at_end": environment.gpu_state(lab.device)}


def pytest_benchmark_generate_commit_info(config: pytest.Config) -> dict[str, Any]:
    return {"id": config.getoption("commit") or environment.commit()}


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    output_json["muon_kernels"] = config.stash[_LAB].as_info()
    for entry in output_json["benchmarks"]:
        entry["params"] = None  # objects of ours, which JSON would hold as their repr; extra_info names them


@pytest.hookimpl(tryfirst=True)
def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Names in test ids: the cell's, the provider's."""
    return str(getattr(val, "name", val)) if argname in ("cell", "provider") else None
