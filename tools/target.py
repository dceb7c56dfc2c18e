"""From what the command line calls a model to the model.

`package.module:factory`, `path/to/file.py:factory`, `model.pt2` or `model.onnx`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from recreplay.runtime.errors import CaptureError
from recreplay.tools.factory_args import parse_factory_args

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

FORMS = "recreplay.models:dlrm_rmc1, path/to/file.py:factory, model.pt2 or model.onnx"


@dataclass(frozen=True)
class Target:
    """A model, how it was asked for, and what its factory was given."""

    text: str
    name: str
    model: torch.nn.Module | ExportedProgram
    arguments: dict[str, Any] = field(default_factory=dict)


def load_target(text: str, args: Sequence[str] = ()) -> Target:
    """The model that `text` names, made with the factory arguments `args` (`name=value`).

    Whatever the user's code prints goes to stderr. Raises CaptureError if there is no such model.
    """
    with contextlib.redirect_stdout(sys.stderr):
        if text.endswith((".onnx", ".pt2")):
            return _load_saved(text, args)
        place, name = _split(text)
        folder = Path(place).absolute().parent if place.endswith(".py") else Path.cwd()
        rule = (
            "when it was imported or made the model; expected a factory that returns a "
            "torch.nn.Module. What a script does when it is run goes below "
            'if __name__ == "__main__"'
        )
        with no_exit(text, rule), _on_path(folder):  # factories import, too
            from recreplay.capture.own_example import in_plain_tensors

            factory = _find_factory(text, place, name)
            arguments = parse_factory_args(factory, args)
            model = in_plain_tensors(_make(factory, name, arguments))
            return Target(text, name, model, arguments)


def _load_saved(text: str, args: Sequence[str]) -> Target:
    if args:
        raise CaptureError(f"--arg is for factories; {text} is a saved program")
    if not Path(text).is_file():
        raise CaptureError(f"no file at {text}")
    from recreplay.capture import load_onnx, load_pt2

    load = load_onnx if text.endswith(".onnx") else load_pt2
    return Target(text, Path(text).stem, load(text))


def _split(text: str) -> tuple[str, str]:
    place, colon, name = text.rpartition(":")
    if not colon or not place or not name:
        raise CaptureError(f"{text!r} names no model; expected {FORMS}{_suggestion(text)}")
    return place, name


def _find_factory(text: str, place: str, name: str) -> Callable[..., Any]:
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    found: Any = getattr(module, name, None)
    if found is None:
        raise CaptureError(f"{place} has no {name!r}{_offer(module)}")
    if not callable(found):
        raise CaptureError(
            f"{text} is a {type(found).__name__}; expected a function that returns a "
            "torch.nn.Module"
        )
    factory: Callable[..., Any] = found
    return factory


def _make(factory: Callable[..., Any], name: str, arguments: dict[str, Any]) -> torch.nn.Module:
    import torch

    if isinstance(factory, torch.nn.Module):
        return factory
    try:
        model = factory(**arguments)
    except ValueError as error:
        given = ", ".join(f"{k}={v!r}" for k, v in arguments.items())
        raise CaptureError(f"{name}({given}) refused its arguments: {error}") from error
    if not isinstance(model, torch.nn.Module):
        raise CaptureError(
            f"{name}() returned a {type(model).__name__}; expected a torch.nn.Module in eval mode"
        )
    return model


def _load_module(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise CaptureError(f"{name!r} is no module; expected {FORMS}")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise CaptureError(f"cannot import {name!r}: {error}; expected {FORMS}") from error
    except (SyntaxError, ValueError, TypeError) as error:
        raise CaptureError(f"cannot import {name!r}: {type(error).__name__}: {error}") from error


def _load_file(path: Path) -> ModuleType:
    """The module in `path`, under a name of its own."""
    if not path.is_file():
        raise CaptureError(f"no file at {path}")
    name = f"recreplay_target_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name, None)
        if isinstance(error, (ImportError, SyntaxError)):
            raise CaptureError(f"cannot import {path}: {type(error).__name__}: {error}") from error
        raise
    return module


@contextlib.contextmanager
def no_exit(text: str, when: str) -> Iterator[None]:
    """The model's code may not end the command, which would pass for success."""
    try:
        yield
    except SystemExit as error:
        raise CaptureError(f"{text} called sys.exit({error.code!r}) {when}") from error


@contextlib.contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    """As Python does with the folder of a script that it runs."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


def _offer(module: ModuleType) -> str:
    """The functions that a module defines, for an error message."""
    inside = module.__name__.partition(".")[0]
    names = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and not isinstance(value, type)
        and getattr(value, "__module__", "").startswith(inside)
    ]
    return f"; it has {', '.join(sorted(names))}" if names else ""


def _suggestion(text: str) -> str:
    if not text.isidentifier():
        return ""
    from recreplay.models import MODELS

    return f"; did you mean recreplay.models:{text}?" if text in MODELS else ""
