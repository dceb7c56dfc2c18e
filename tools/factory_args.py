"""`--arg name=value`: the keyword arguments of a factory, typed by its own annotations."""

from __future__ import annotations

import ast
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from recreplay.runtime.errors import CaptureError

_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class _NoFitError(Exception):
    """A text that is no value of a type."""


def parse_factory_args(factory: Callable[..., Any], texts: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments for `factory` from texts `name=value`.

    A value is read as its parameter is annotated; without an annotation, as a Python literal, and
    as a string where it is none. Raises CaptureError for what the factory does not take.
    """
    name = getattr(factory, "__name__", str(factory))
    parameters = inspect.signature(factory).parameters
    named = {
        k: p for k, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = _hints(factory)
    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise CaptureError(f"--arg {text!r}: expected name=value, such as rows_scale=0.01")
        if key in values:
            raise CaptureError(f"--arg {key} is given twice")
        if key not in named and not takes_any:
            known = ", ".join(named) or "none"
            raise CaptureError(f"{name} has no argument {key!r}; its arguments are: {known}")
        try:
            values[key] = _convert(value, hints.get(key, Any))
        except _NoFitError:
            raise CaptureError(
                f"--arg {key}={value}: expected {_describe(hints[key])} for {key!r} of {name}"
            ) from None
    missing = [k for k, p in named.items() if p.default is p.empty and k not in values]
    if missing:
        needed = " ".join(f"--arg {k}=..." for k in missing)
        raise CaptureError(f"{name} needs {', '.join(missing)}: give {needed}")
    return values


def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
    target = factory.__init__ if inspect.isclass(factory) else factory
    try:
        return typing.get_type_hints(target)
    except (NameError, TypeError, AttributeError):
        return {}  # an annotation that only a type checker can read; literals have to do


def _convert(text: str, hint: Any) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _first_fit(text, inner)
    if origin is typing.Literal:
        for choice in inner:
            if str(choice) == text:
                return choice
        raise _NoFitError
    if hint is None or hint is type(None):
        if text.lower() in ("none", "null"):
            return None
        raise _NoFitError
    if hint is bool:
        if text.lower() not in _BOOLEANS:
            raise _NoFitError
        return _BOOLEANS[text.lower()]
    if hint is str:
        return text
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            raise _NoFitError from None
    value = _literal(text)
    if hint is Any:
        return value
    kind = origin or hint
    if isinstance(kind, type) and not _is_a(value, kind):
        raise _NoFitError
    return value


def _first_fit(text: str, hints: Sequence[Any]) -> Any:
    # A string takes everything, so it is asked last.
    for hint in sorted(hints, key=lambda h: h is str):
        try:
            return _convert(text, hint)
        except _NoFitError:
            continue
    raise _NoFitError


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _is_a(value: Any, kind: type) -> bool:
    # The only thing that can reach here as a string is text that is no literal at all.
    return isinstance(value, kind) and (kind is str or not isinstance(value, str))


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    return hint.__name__ if type(hint) is type else str(hint)
