"""Which lookups can be written as columns of one matrix, so that nothing is left to concatenate.

A trunk begins with a concatenation of the rows of many features (`cat` along their columns, or
`stack`). What a grouped lookup writes side by side is that concatenation already; where other
tensors stand between, as the output of a bottom MLP does, fewer and wider pieces are left.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import fx

from recreplay.capture.program import Program

aten = torch.ops.aten


@dataclass(frozen=True)
class Columns:
    """Rows of one feature, `[rows, width]` from column `start` of a matrix on."""

    matrix: int
    start: int
    width: int


def plan_columns(
    program: Program,
    rows_of: Collection[fx.Node],
    features: Mapping[fx.Node, frozenset[str]],
) -> tuple[dict[fx.Node, Columns], list[int]]:
    """A place for each node of `rows_of` that only concatenations read, and each matrix's width.

    What a branch goes on with, or the model returns, keeps rows of its own.
    """
    returned = set(program.outputs.values())
    free = {
        node
        for node in rows_of
        if node.meta["val"].ndim == 2
        and node not in returned
        and all(_joins(user) and len(features[user]) > 1 for user in node.users)
    }
    places: dict[fx.Node, Columns] = {}
    widths: list[int] = []
    for joint in (node for node in program.graph.nodes if _joins(node)):
        new = [n for n in dict.fromkeys(_parts(joint)) if n in free and n not in places]
        if len(new) < 2:
            continue
        end = 0
        for node in new:
            width = int(node.meta["val"].shape[1])
            places[node] = Columns(len(widths), end, width)
            end += width
        widths.append(end)
    return places, widths


def drop_concatenations(
    program: Program,
    places: Mapping[fx.Node, Columns],
    columns: Callable[[int, int, int], fx.Node],
    widths: list[int],
) -> None:
    """Read each run of adjacent pieces at once; a run that is a whole matrix is the result.

    `columns(matrix, start, end)` gives these columns as a view `[rows, end - start]`.
    """
    for joint in [node for node in program.graph.nodes if _joins(node)]:
        parts = _parts(joint)
        if not any(part in places for part in parts):
            continue
        stacked = joint.target is aten.stack.default
        pieces: list[fx.Node] = []
        for run in _runs(parts, places):
            first, last = places.get(run[0]), places.get(run[-1])
            if first is None or last is None:
                part = run[0]
                pieces.append(program.call(aten.unsqueeze.default, part, 1) if stacked else part)
                continue
            piece = columns(first.matrix, first.start, last.start + last.width)
            if stacked:
                rows = int(piece.meta["val"].shape[0])
                piece = program.call(aten.view.default, piece, [rows, len(run), first.width])
            pieces.append(piece)
        begin = places.get(parts[0])
        whole = (
            len(pieces) == 1
            and begin is not None
            and widths[begin.matrix] == sum(places[part].width for part in parts)
        )
        joined = pieces[0] if whole else program.call(aten.cat.default, pieces, 1)
        program.replace(joint, joined)


def _joins(node: fx.Node) -> bool:
    """Whether `node` puts two-dimensional tensors side by side, by their columns."""
    if node.target not in (aten.cat.default, aten.stack.default):
        return False
    parts = _parts(node)
    dim = node.args[1] if len(node.args) > 1 else 0
    last = (1, -1) if node.target is aten.cat.default else (1, -2)
    return dim in last and all(part.meta["val"].ndim == 2 for part in parts)


def _parts(joint: fx.Node) -> list[fx.Node]:
    return list(joint.args[0])  # type: ignore[arg-type]


def _runs(parts: list[fx.Node], places: Mapping[fx.Node, Columns]) -> list[list[fx.Node]]:
    runs = [[parts[0]]]
    for before, part in pairwise(parts):
        left, right = places.get(before), places.get(part)
        adjoins = (
            left is not None
            and right is not None
            and left.matrix == right.matrix
            and left.start + left.width == right.start
        )
        if adjoins:
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs
