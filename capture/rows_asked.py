"""Lines of a model that ask how many rows there are, to be named where it is refused for that.

torch.export reports what was fixed at its end, of the whole model, and has forgotten where.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

# Frames of these folders are not the model's.
_OTHERS = tuple(f"{Path(file).parent}/" for file in (__file__, torch.__file__))


@contextmanager
def lines_that_ask() -> Iterator[list[str]]:
    """Fills the list with ` at file:line: source` of each line, below what calls this, whose answer
    holds for some numbers of rows only."""
    found: list[str] = []
    outside = sys._getframe(2)  # behind `contextlib`
    usual: Any = ShapeEnv.evaluate_expr

    @wraps(usual)
    def evaluate(environment: ShapeEnv, *arguments: Any, **named: Any) -> Any:
        before = len(environment.guards)
        answer = usual(environment, *arguments, **named)
        # One of two sizes may be that both are the batch.
        fixed = any(len(guard.expr.free_symbols) == 1 for guard in environment.guards[before:])
        if fixed and (line := _line(sys._getframe(1), outside)) not in ("", *found):
            found.append(line)
        return answer

    noting: Any = evaluate
    ShapeEnv.evaluate_expr = noting  # type: ignore[method-assign]
    try:
        yield found
    finally:
        ShapeEnv.evaluate_expr = usual  # type: ignore[method-assign]


def calling_line() -> str:
    """The line of the model that is being traced."""
    return _line(sys._getframe(1))


def _line(frame: FrameType | None, outside: FrameType | None = None) -> str:
    """The innermost one that is the model's."""
    while frame is not None and frame is not outside:
        file, number = frame.f_code.co_filename, frame.f_lineno
        if found := model_line(file, number, linecache.getline(file, number).strip()):
            return found
        frame = frame.f_back
    return ""


def model_line(file: str, number: int | None, source: str | None) -> str:
    """` at file:line: source` of a frame, or nothing where it is not the model's."""
    if not source or file.startswith(("<", *_OTHERS)):
        return ""
    return f" at {file}:{number}: {source}"
