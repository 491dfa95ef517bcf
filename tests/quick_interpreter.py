"""Triton's interpreter without two things that it does for nothing, for more than half of its time."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import ModuleType

from triton import language
from triton.language.core import is_builtin
from triton.runtime import interpreter

_patch_lang = interpreter._patch_lang


def install() -> None:
    """For as long as the process lives."""
    # Every sum of integers is computed again in 64 bit and compared; what comes out is asserted with `debug` alone.
    options = interpreter.interpreter_builder.options
    interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)
    interpreter._patch_lang = _patch_unless_done


def _patch_unless_done(fn: Callable) -> interpreter._LangPatchScope:
    """Whenever one function of a kernel calls another, all of triton.language is searched for what is to be replaced,
    although the kernel's launch has replaced it, as one function tells. Nothing is left to restore then."""
    if any(is_builtin(module.arange) for module in _languages(fn)):
        return _patch_lang(fn)
    return interpreter._LangPatchScope()


@cache
def _languages(fn: Callable) -> list[ModuleType]:
    """What `fn` knows of triton.language."""
    known = list(fn.__globals__.values())
    return [module for module in (language, language.core) if any(module is value for value in known)]
