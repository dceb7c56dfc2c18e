"""Sequences that a model packs by their lengths, as a graph can have them.

torch lays out the items that lists hold, one place of all lists after another, which makes shapes
of the lengths. Here all places stay. A layer reads them in order, so that what a list holds comes
before what it does not, and its last state is found at its length: nothing that a model gets was
computed of a place that holds no item. Backwards, each list is turned about within its length.

Steps of a model's own over them are taken as `packed_steps` says.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import ModuleType
from typing import Any

import torch
from torch import _VF, Tensor, nn
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence

from recreplay.capture.packed_steps import Lists, forget_lists, refusal
from recreplay.capture.rows_asked import calling_line
from recreplay.capture.rows_left_out import of_some_rows
from recreplay.runtime.errors import UnsupportedModelError

_LAYERS = (nn.RNN, nn.GRU, nn.LSTM)
_CALLS: dict[str, Any] = {
    "RNN_TANH": _VF.rnn_tanh,
    "RNN_RELU": _VF.rnn_relu,
    "GRU": _VF.gru,
    "LSTM": _VF.lstm,
}
_SHUT = 1e4  # a gate of which is 0, and its opposite 1, in each type of floats
States = tuple[Tensor, ...]  # of an LSTM layer with its cells


@contextmanager
def all_places() -> Iterator[None]:
    """Packs sequences so, whoever calls torch to in this thread, and lets recurrent layers read
    them."""
    thread = threading.get_ident()

    def of_this_thread(function: Any, instead: Any) -> Any:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            mine = threading.get_ident() == thread
            return (instead if mine else function)(*args, **kwargs)

        return call

    pack, pad = rnn.pack_padded_sequence, rnn.pad_packed_sequence
    own = {pack: of_this_thread(pack, _packed), pad: of_this_thread(pad, _padded)}
    known = {id(function) for function in own}
    bound = [
        (vars(module), name, value)
        for module in list(sys.modules.values())
        if isinstance(module, ModuleType)
        and not known.isdisjoint(map(id, list(vars(module).values())))  # of 100,000 names in all
        for name, value in list(vars(module).items())
        if id(value) in known
    ]
    forwards: list[tuple[Any, Any]] = [(layer, layer.forward) for layer in _LAYERS]
    for space, name, function in bound:
        space[name] = own[function]
    for layer, forward in forwards:
        layer.forward = _reading(forward)
    try:
        yield
    finally:
        for space, name, function in bound:
            space[name] = function
        for layer, forward in forwards:
            layer.forward = forward
        forget_lists()


def _packed(
    input: Tensor, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True
) -> PackedSequence:
    rows = input if batch_first else input.transpose(0, 1)
    places: Any = rows.shape[1]
    if isinstance(places, torch.SymInt) and len(places.node.expr.free_symbols) > 1:
        places = int(places)  # of rows of two inputs, which are as many
    if not isinstance(lengths, Tensor):
        raise refusal("lengths that are no tensor are")
    if not isinstance(places, int):
        raise refusal("a number of places that differs is")
    # Copies, as torch's are: models may write into what they packed, and into what they gave.
    lengths = lengths.to(input.device, torch.int64, copy=True)
    if of_some_rows(lengths):  # and where a row is left out, it has no item
        lengths = lengths.clamp(min=1)
    lists: Any = Lists(rows.shape[0], places, lengths)
    # Rows stay in their order, which models may ask for where torch would have sorted them.
    order = None if enforce_sorted else torch.arange(rows.shape[0], device=input.device)
    return PackedSequence(rows.flatten(0, 1).clone(), lists, order, order)


def _padded(
    sequence: PackedSequence,
    batch_first: bool = False,
    padding_value: float = 0.0,
    total_length: int | None = None,
) -> tuple[Tensor, Tensor]:
    lists: Any = sequence.batch_sizes
    if total_length is None or total_length < lists.places:
        raise UnsupportedModelError(
            "pad_packed_sequence makes as many places as the longest list of a request has items"
            f"{calling_line()}; a captured graph has fixed shapes, so give it "
            f"total_length={lists.places}, as many as were packed, or more"
        )
    rows = torch.unflatten(sequence.data, 0, (-1, lists.places))
    held = lists.held()
    rows = rows.masked_fill(~held.view(*held.shape, *[1] * (rows.ndim - 2)), padding_value)
    if total_length > lists.places:
        more = rows.new_full((), padding_value).expand(
            rows.shape[0], total_length - lists.places, *rows.shape[2:]
        )
        rows = torch.cat([rows, more], 1)
    return rows if batch_first else rows.transpose(0, 1), lists.lengths.clone()


def _reading(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def read(layer: Any, input: Any, hx: Any = None) -> Any:
        if isinstance(input, PackedSequence) and isinstance(input.batch_sizes, Lists):
            return _read(layer, input, hx)
        return forward(layer, input, hx)

    return read


def _read(layer: Any, packed: PackedSequence, first: Any) -> Any:
    """What a layer makes of a packed sequence: all states, packed, and the last ones."""
    lists: Any = packed.batch_sizes
    if layer.proj_size:
        raise refusal("a projection (proj_size) is")
    source = torch.unflatten(packed.data, 0, (-1, lists.places))
    of_cells = layer.mode == "LSTM"
    firsts = first if of_cells and first is not None else (first,) * (1 + of_cells)
    ends: list[States] = []
    for number in range(layer.num_layers):
        ways = []
        for way in range(1 + layer.bidirectional):
            at = len(ends)
            before = tuple(
                source.new_zeros(source.shape[0], layer.hidden_size) if f is None else f[at]
                for f in firsts
            )
            given = lists.turned(source) if way else source
            states, end = _way(layer, layer.all_weights[at], lists, given, before)
            ways.append(lists.turned(states) if way else states)
            ends.append(end)
        source = torch.cat(ways, 2) if len(ways) > 1 else ways[0]
        if number + 1 < layer.num_layers:
            source = nn.functional.dropout(source, layer.dropout, layer.training)
    last = tuple(torch.stack(each) for each in zip(*ends, strict=True))
    read = packed._replace(data=source.flatten(0, 1))
    return read, last if of_cells else last[0]


def _way(
    layer: Any, weights: Any, lists: Lists, source: Tensor, first: States
) -> tuple[Tensor, States]:
    """All states of one layer in one direction, and the last ones."""
    before = [state.unsqueeze(0) for state in first]
    read = _CALLS[layer.mode]
    plain = (layer.bias, 1, 0.0, False, False, True)
    if layer.mode != "LSTM":
        states, _ = read(source, before[0], weights, *plain)
        return states, (lists.last(states),)
    states, _, _ = read(source, before, weights, *plain)
    # Cells are given of the last place alone: those of a list that ends before are kept as they
    # are, where one more input shuts the gates. Nothing is computed so where no cell is read.
    wide, *others = weights
    gates = [-_SHUT, _SHUT, 0.0, 0.0]  # in, forget, cell, out
    column = wide.new_tensor(gates).repeat_interleave(layer.hidden_size).unsqueeze(1)
    behind = ~lists.held().unsqueeze(2)
    shut = torch.cat([source.masked_fill(behind, 0.0), behind.to(source.dtype)], 2)
    _, _, cells = read(shut, before, [torch.cat([wide, column], 1), *others], *plain)
    return states, (lists.last(states), cells[0])
