"""Triton's interpreter without two things that it does for nothing, for more than half of its time."""

from dataclasses import replace
from inspect import getmembers

from triton.language.core import is_builtin
from triton.runtime import interpreter

_patch_builtin = interpreter._patch_builtin
_first_builtin: dict[object, str] = {}


def install() -> None:
    """For as long as the process lives."""
    # Every sum of integers is computed again in 64 bit and compared; what comes out is asserted with `debug` alone.
    options = interpreter.interpreter_builder.options
    interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)
    interpreter._patch_builtin = _patch_unless_done


def _patch_unless_done(package: object, *rest: object) -> None:
    """Whenever one function of a kernel calls another, all of triton.language is searched for functions that are to be
    replaced. They are replaced all at once, so that the first one tells."""
    if package not in _first_builtin:
        _first_builtin[package] = next(name for name, member in getmembers(package) if is_builtin(member))
    if is_builtin(getattr(package, _first_builtin[package])):
        _patch_builtin(package, *rest)
