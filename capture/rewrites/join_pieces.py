"""Rewrite: a concatenation reads adjoining pieces of one tensor as one.

Stacked lookups and branches leave a trunk that concatenates dozens of pieces of a few tensors,
`[F, B, d]` cut into F times `[B, d]`. Laid side by side, these are the tensor with its first two
dimensions exchanged. On CUDA inductor makes a kernel of its own for each piece of a long
concatenation: 26 tables were 38 kernels (`tests/emulated`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import fx

from recreplay.capture.program import Program
from recreplay.capture.views import row_from_front, slice_arguments

aten = torch.ops.aten
_RESHAPES = {
    aten.view.default,
    aten.reshape.default,
    aten.unsqueeze.default,
    aten.squeeze.dims,
}


@dataclass(frozen=True)
class _Piece:
    """`[rows, *row]`, elements `start` and on of a dense tensor; of none if `source` is itself."""

    source: fx.Node
    start: int
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.start + prod(self.shape)


def join_pieces(program: Program) -> None:
    """Rewrite `program` in place."""
    for node in list(program.graph.nodes):
        if node.target in (aten.cat.default, aten.stack.default):
            parts = _side_by_side(program, node)
            runs = _runs([_piece(part) for part in parts])
            if parts and len(runs) <= len(parts) // 2:
                program.replace(node, _join(program, node, parts, runs))
    program.sort()
    program.prune()


def _side_by_side(program: Program, joint: fx.Node) -> list[fx.Node]:
    """Its parts as `[rows, *row]` to be laid along the second dimension; none where they are laid
    along another one, other than one behind dimensions of 1 (`[rows, 1, width]`)."""
    dim, parts = _dimension(joint), list(joint.args[0])  # type: ignore[arg-type]
    shapes = [list(part.meta["val"].shape) for part in parts]
    if dim == 1:
        return parts
    behind_ones = dim > 1 and all(shape[1:dim] == [1] * (dim - 1) for shape in shapes)
    if joint.target is aten.stack.default or not behind_ones:
        return []
    flat = [[shape[0], *shape[dim:]] for shape in shapes]
    return [program.call(aten.view.default, *pair) for pair in zip(parts, flat, strict=True)]


def _dimension(joint: fx.Node) -> int:
    dim = joint.args[1] if len(joint.args) > 1 else 0
    assert isinstance(dim, int)
    return dim % int(joint.meta["val"].ndim)


def _piece(part: fx.Node) -> _Piece:
    """What part of which tensor this is."""
    cut = part
    while cut.target in _RESHAPES:
        cut = cut.args[0]  # type: ignore[assignment]
    shape = tuple(part.meta["val"].shape)
    begin = _first_row(cut)
    if begin is None:
        return _Piece(part, 0, shape)
    source = cut.args[0]
    assert isinstance(source, fx.Node)
    if not source.meta["val"].is_contiguous():
        return _Piece(part, 0, shape)
    return _Piece(source, begin * prod(source.meta["val"].shape[1:]), shape)


def _first_row(cut: fx.Node) -> int | None:
    """Where `x[k]` or `x[a:b]` begins; None of anything else."""
    if cut.target is aten.select.int and cut.args[1] == 0:
        return row_from_front(cut, int(cut.args[2]))  # type: ignore[arg-type]
    if cut.target is aten.slice.Tensor:
        dim, start, _, step = slice_arguments(cut)
        return row_from_front(cut, int(start or 0)) if (dim, step) == (0, 1) else None
    return None


def _runs(pieces: Sequence[_Piece]) -> list[list[_Piece]]:
    """Pieces of one shape that adjoin, together."""
    runs = [[piece] for piece in pieces[:1]]
    for piece in pieces[1:]:
        last = runs[-1][-1]
        if (piece.source, piece.start, piece.shape) == (last.source, last.end, last.shape):
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return runs


def _join(
    program: Program, joint: fx.Node, parts: Sequence[fx.Node], runs: Sequence[list[_Piece]]
) -> fx.Node:
    """The concatenation, of a tensor for each run.

    A run is a view `[rows, pieces, width, ...]`. Where `width` measures everything, the views are
    what is concatenated; else each run is made dense first.
    """
    stacked = joint.target is aten.stack.default
    shape = list(joint.meta["val"].shape)
    widths = {1} if stacked else {run[0].shape[1] for run in runs if len(run) > 1}
    width = next(iter(widths))
    even = len(widths) == 1 and all(len(run) > 1 or run[0].shape[1] % width == 0 for run in runs)
    blocks, at = [], 0
    for run in runs:
        block = _exchanged(program, run) if len(run) > 1 else parts[at]
        rows, *row = run[0].shape
        if stacked and len(run) == 1:
            block = program.call(aten.unsqueeze.default, block, 1)
        elif not stacked and even and len(run) == 1:
            apart = [rows, row[0] // width, width, *row[1:]]
            block = program.call(aten.view.default, block, apart)
        elif not stacked and not even and len(run) > 1:
            dense = _dense(program, block)
            block = program.call(aten.view.default, dense, [rows, len(run) * row[0], *row[1:]])
        blocks.append(block)
        at += len(run)
    whole = program.call(aten.cat.default, blocks, 1) if len(blocks) > 1 else blocks[0]
    if len(blocks) == 1:
        whole = _dense(program, whole)
    if list(whole.meta["val"].shape) == shape:
        return whole
    return program.call(aten.view.default, whole, shape)


def _exchanged(program: Program, run: list[_Piece]) -> fx.Node:
    """`[rows, pieces, *row]` of pieces `[rows, *row]` that lie one after the other."""
    first, source = run[0], run[0].source
    row = prod(source.meta["val"].shape[1:])
    whole = program.call(aten.slice.Tensor, source, 0, first.start // row, run[-1].end // row)
    viewed = program.call(aten.view.default, whole, [len(run), *first.shape])
    return program.call(aten.transpose.int, viewed, 0, 1)


def _dense(program: Program, block: fx.Node) -> fx.Node:
    return program.call(aten.clone.default, block, memory_format=torch.contiguous_format)
