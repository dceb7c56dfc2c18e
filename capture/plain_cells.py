"""Cells of recurrent layers, one step each, as the linear layers that rewrites take and what torch
does with their results."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from recreplay.capture.program import Program

aten = torch.ops.aten


def as_cell(program: Program, target: Any, args: Any) -> Any:
    """The new state of a GRU cell, the new state and cell of an LSTM's as a list; None for anything
    else."""
    if target is aten.gru_cell.default:
        return _gru(program, *args)
    if target is aten.lstm_cell.default:
        return _lstm(program, *args)
    return None


def _gru(
    program: Program,
    given: fx.Node,
    state: fx.Node,
    wide: fx.Node,
    recurs: fx.Node,
    *biases: fx.Node | None,
) -> fx.Node:
    call = program.call
    of_input, of_state = biases or (None, None)
    read = _parts(program, call(aten.linear.default, given, wide, of_input), 3)
    own = _parts(program, call(aten.linear.default, state, recurs, of_state), 3)
    reset, kept = (_sigmoid_of_sum(program, read[i], own[i]) for i in (0, 1))
    new = call(aten.add.Tensor, read[2], call(aten.mul.Tensor, reset, own[2]))
    new = call(aten.tanh.default, new)
    change = call(aten.mul.Tensor, call(aten.sub.Tensor, state, new), kept)
    return call(aten.add.Tensor, change, new)


def _lstm(
    program: Program,
    given: fx.Node,
    before: tuple[fx.Node, fx.Node],
    wide: fx.Node,
    recurs: fx.Node,
    *biases: fx.Node | None,
) -> list[fx.Node]:
    call = program.call
    state, cell = before
    of_input, of_state = biases or (None, None)
    read = _parts(program, call(aten.linear.default, given, wide, of_input), 4)
    own = _parts(program, call(aten.linear.default, state, recurs, of_state), 4)
    taken, kept, out = (_sigmoid_of_sum(program, read[i], own[i]) for i in (0, 1, 3))
    new = call(aten.tanh.default, call(aten.add.Tensor, read[2], own[2]))
    held = call(aten.mul.Tensor, kept, cell)
    held = call(aten.add.Tensor, held, call(aten.mul.Tensor, taken, new))
    return [call(aten.mul.Tensor, out, call(aten.tanh.default, held)), held]


def _sigmoid_of_sum(program: Program, left: fx.Node, right: fx.Node) -> fx.Node:
    return program.call(aten.sigmoid.default, program.call(aten.add.Tensor, left, right))


def _parts(program: Program, gates: fx.Node, count: int) -> list[fx.Node]:
    width = int(gates.meta["val"].shape[-1]) // count
    return [
        program.call(aten.slice.Tensor, gates, -1, i * width, (i + 1) * width) for i in range(count)
    ]
