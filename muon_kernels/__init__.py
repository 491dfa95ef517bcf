"""Muon at the speed of the hardware: `Muon`, its groups, `orthogonalize`, and who runs what (`explain`)."""

from importlib.metadata import PackageNotFoundError, version

from .backends import BackendUnavailable, explain, use_backend
from .muon import Muon
from .orthogonalize import orthogonalize
from .routing import param_groups_for

try:
    __version__ = version("muon_kernels")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["BackendUnavailable", "Muon", "__version__", "explain", "orthogonalize", "param_groups_for", "use_backend"]
