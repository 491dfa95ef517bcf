"""The compiled module `muon_kernels._C`, or the reason why it cannot be had."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

_MODULE = "muon_kernels._C"


class ExtensionUnavailable(RuntimeError):
    """`muon_kernels._C` was not built, or was built and does not import (then `__cause__` holds the error)."""


def load() -> ModuleType:
    """The compiled module.

    Raises:
        ExtensionUnavailable: on every call; the first attempt to import decides for the life of the process.
    """
    outcome = _outcome()
    if isinstance(outcome, ModuleType):
        return outcome
    raise ExtensionUnavailable(_describe(outcome)) from (None if _not_built(outcome) else outcome)


def unavailable_reason() -> str | None:
    """None if the extension loads; otherwise what `load` would say."""
    outcome = _outcome()
    return None if isinstance(outcome, ModuleType) else _describe(outcome)


def is_broken() -> bool:
    """Whether the extension was built but does not import."""
    outcome = _outcome()
    return not isinstance(outcome, ModuleType) and not _not_built(outcome)


@cache
def _outcome() -> ModuleType | Exception:
    try:
        # By its full name: `from . import _C` raises a plain ImportError that hides whether the file is there.
        return importlib.import_module(_MODULE)
    except Exception as error:
        return error


def _not_built(error: Exception) -> bool:
    return isinstance(error, ModuleNotFoundError) and error.name == _MODULE


def _describe(error: Exception) -> str:
    if _not_built(error):
        return "the CUDA extension is not built: install muon_kernels from source with nvcc"
    return f"the CUDA extension is built but does not import: {type(error).__name__}: {error}"
