"""How reports look: tables, bytes, microseconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import JustifyMethod
from rich.table import Table

from recreplay.tools.console import printable

_UNITS = ("B", "KB", "MB", "GB", "TB")


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A table whose columns are named in `columns`; a name that ends in `>` is right-aligned."""
    made = _titled(title, box=box.SIMPLE_HEAD)
    for column in columns:
        number = column.endswith(">")
        justify: JustifyMethod = "right" if number else "left"
        made.add_column(column.removesuffix(">"), justify=justify, no_wrap=number, overflow="fold")
    for row in rows:
        made.add_row(*(printable(str(cell)) for cell in row))
    return made


def pairs(title: str | None, rows: Iterable[tuple[str, Any]]) -> Table:
    """A list of names and values."""
    made = _titled(title, box=None, show_header=False)
    made.add_column(style="cyan", overflow="fold")  # of names, which may be long
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(printable(name), printable(str(value)))
    return made


def _titled(title: str | None, **options: Any) -> Table:
    text = None if title is None else printable(title)
    return Table(title=text, title_justify="left", title_style="bold", **options)


def size(nbytes: float) -> str:
    """Bytes in words: `41.0 MB`. A kilobyte is 1000 bytes."""
    value = float(nbytes)
    for unit in _UNITS:
        if value < 1000 or unit == _UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("the last unit takes everything")


def micros(value: float | None) -> str:
    """Microseconds, with a digit after the point where it says something."""
    if value is None:
        return "-"
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def share(part: float, whole: float) -> str:
    """`part` of `whole` in percent."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def times(ratio: float) -> str:
    """A speed-up: `6.72x`."""
    return f"{ratio:.2f}x"
