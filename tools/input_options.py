"""Options that say what inputs are: which are jagged, which the user's, and which the row mask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recreplay.runtime.errors import CaptureError

if TYPE_CHECKING:
    from recreplay.capture import Jagged

UserInputs = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES", help="Inputs that all rows of a request share, separated by commas."
    ),
]
Users = Annotated[
    int,
    typer.Option(
        help="The most users of one request; above 1, the input user_index names each row's."
    ),
]
RowMaskInput = Annotated[
    str | None,
    typer.Option(
        "--row-mask",
        metavar="NAME",
        help="The input that is true for rows of a request and false for padding, of a model that "
        "compares the rows of a request. The runtime fills it.",
    ),
]
JaggedInputs = Annotated[
    list[str] | None,
    typer.Option(
        "--jagged",
        metavar="VALUES:OFFSETS",
        help="Values of a varying number per row and their offsets, or VALUES:lengths=NAME; may be "
        "repeated.",
    ),
]
Capacity = Annotated[
    list[str] | None,
    typer.Option(
        metavar="VALUES=N",
        help="Room for jagged values per row: a number, or a .npy file of observed lengths, of "
        "which it is twice the mean. [dim]Default: twice the example's mean.[/] May be repeated.",
    ),
]


def parse_names(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",")) if text else ()


def parse_jagged(texts: Sequence[str], capacities: Sequence[str]) -> list[Jagged]:
    """Declarations from `values:offsets` and `values:lengths=name`, with `values=capacity`."""
    from recreplay.capture import Jagged

    room = dict(_capacity(text) for text in capacities)
    found = []
    for text in texts:
        values, colon, division = text.partition(":")
        kind, equals, name = division.partition("=")
        kind, name = (kind, name) if equals else ("offsets", division)
        if not (values and colon and name) or kind not in ("offsets", "lengths"):
            raise CaptureError(
                f"--jagged {text!r}: expected VALUES:OFFSETS or VALUES:lengths=NAME, names of "
                "inputs"
            )
        found.append(Jagged(values, **{kind: name}, capacity=room.pop(values, None)))
    if room:
        raise CaptureError(f"--capacity for {min(room)!r}, which no --jagged declares")
    return found


def _capacity(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    if value.endswith(".npy"):
        return name, _from_traffic(Path(value))
    if not name or not value.isdecimal():
        raise CaptureError(
            f"--capacity {text!r}: expected VALUES=N, an input and a number per row, or a .npy "
            "file of lengths"
        )
    return name, int(value)


def _from_traffic(path: Path) -> int:
    """Room per row from a file of observed lengths, one per row."""
    import numpy as np

    from recreplay.capture.declared import usual_capacity
    from recreplay.tools.files import why_unread

    try:
        lengths = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CaptureError(
            f"--capacity: {path} is not a .npy file of lengths: {why_unread(error)}"
        ) from error
    if lengths.ndim != 1 or not lengths.size or lengths.dtype.kind not in "iu" or lengths.min() < 0:
        raise CaptureError(
            f"--capacity: {path} holds {lengths.dtype}{list(lengths.shape)}; expected integers of "
            "0 or more, one per row"
        )
    return usual_capacity(int(lengths.sum()), len(lengths))
