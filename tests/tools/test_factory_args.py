from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytest

from recreplay.runtime.errors import CaptureError
from recreplay.tools.factory_args import parse_factory_args


def factory(  # type: ignore[no-untyped-def]
    *,
    rows: int | Sequence[int] = 10,
    scale: float = 1.0,
    deep: bool = False,
    kind: Literal["cat", "dot"] = "cat",
    name: str | None = None,
    plain=7,
) -> None:
    pass


def needs(width: int, *, depth: int = 1) -> None:
    pass


def open_ended(**anything: Any) -> None:
    pass


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("rows=5", 5),
        ("rows=[5, 6]", [5, 6]),
        ("scale=1e-2", 0.01),
        ("scale=3", 3.0),
        ("deep=true", True),
        ("deep=0", False),
        ("kind=dot", "dot"),
        ("name=12", "12"),
        ("name=a=b", "a=b"),
        ("name=none", None),
        ("plain=[1, 'x']", [1, "x"]),
        ("plain=words", "words"),
    ],
)
def test_values_follow_annotations(text: str, value: object) -> None:
    (found,) = parse_factory_args(factory, [text]).values()
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("made", "texts", "message"),
    [
        (factory, ["rows"], "expected name=value"),
        (factory, ["=3"], "expected name=value"),
        (factory, ["colour=red"], "no argument 'colour'; its arguments are: rows, scale"),
        (factory, ["scale=wide"], "--arg scale=wide: expected float"),
        (factory, ["rows=many"], "expected int"),
        (factory, ["deep=perhaps"], "expected bool"),
        (factory, ["kind=sum"], "expected one of cat, dot"),
        (factory, ["rows=1", "rows=2"], "given twice"),
        (needs, ["depth=2"], "needs width: give --arg width="),
    ],
)
def test_errors(made: Callable[..., None], texts: list[str], message: str) -> None:
    with pytest.raises(CaptureError, match=message.replace("?", r"\?")):
        parse_factory_args(made, texts)


def test_keyword_factories_take_anything() -> None:
    assert parse_factory_args(open_ended, ["a=1", "b=x"]) == {"a": 1, "b": "x"}
