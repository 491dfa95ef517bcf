"""Other packages, where they are installed."""

import importlib
import importlib.util
import sys
from functools import cache
from types import ModuleType

import pytest


def module(name):
    """An installed package's module; skips by name where it is missing or does not import."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} does not import: {error}")


@cache
def timm_optim():
    """`timm.optim`, also where timm is installed without torchvision: its models need that, its optimizers do not."""
    spec = importlib.util.find_spec("timm")
    if spec is None:
        pytest.skip("timm is not installed")
    try:
        return importlib.import_module("timm.optim")
    except ImportError:
        package, models = ModuleType("timm"), ModuleType("timm.models")
        package.__path__ = spec.submodule_search_locations
        models.group_parameters = None  # layer decay alone calls it
        sys.modules |= {"timm": package, "timm.models": models}
        return importlib.import_module("timm.optim")
