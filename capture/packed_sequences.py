"""Sequences that a model packs by their lengths, as a graph can have them.

torch lays out the items that lists hold, one place of all lists after another, which makes shapes
of the lengths. Here all places stay. A layer reads them in order, so that what a list holds comes
before what it does not, and its last state is found at its length: nothing that a model gets was
computed of a place that holds no item. Backwards, each list is turned about within its length.

What else may be asked of a packed sequence, how many lists have an item at a place, is refused.
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

from recreplay.capture.rows_asked import calling_line
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


class _Lists:
    """What stands for `batch_sizes`: all rows have all places, and lists hold so many of them."""

    device = torch.device("cpu")

    def __init__(self, places: int, lengths: Tensor) -> None:
        self.places = places
        self.lengths = lengths

    def held(self) -> Tensor:
        """`[rows, places]`, whether there is an item."""
        places = torch.arange(self.places, device=self.lengths.device)
        return places < self.lengths.unsqueeze(1)

    def last(self, of: Tensor) -> Tensor:
        """`[rows, places, D]` to `[rows, D]`, at each list's last item."""
        index = (self.lengths - 1).view(-1, 1, 1).expand(-1, 1, of.shape[2])
        return of.gather(1, index).squeeze(1)

    def turned(self, of: Tensor) -> Tensor:
        """`[rows, places, D]` with each list's items in the opposite order, before what is none."""
        places = torch.arange(self.places, device=self.lengths.device)
        ends = self.lengths.unsqueeze(1)
        index = torch.where(places < ends, ends - 1 - places, places)
        return of.gather(1, index.unsqueeze(2).expand(-1, -1, of.shape[2]))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise _asked()

    def __getitem__(self, at: Any) -> Any:
        raise _asked()

    def __iter__(self) -> Any:
        raise _asked()

    def __len__(self) -> int:
        raise _asked()


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
    modules = [m for m in list(sys.modules.values()) if isinstance(m, ModuleType)]
    bound = [
        (vars(module), name, value)
        for module in modules
        for name, value in list(vars(module).items())
        if any(value is function for function in own)
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


def _packed(
    input: Tensor, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True
) -> PackedSequence:
    rows = input if batch_first else input.transpose(0, 1)
    places = rows.shape[1]
    if not isinstance(lengths, Tensor):
        raise _refusal("lengths that are no tensor are")
    if not isinstance(places, int):
        raise _refusal("a number of places that differs is")
    # Copies, as torch's are: models may write into what they packed, and into what they gave.
    lists: Any = _Lists(places, lengths.to(input.device, torch.int64, copy=True))
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
        if isinstance(input, PackedSequence) and isinstance(input.batch_sizes, _Lists):
            return _read(layer, input, hx)
        return forward(layer, input, hx)

    return read


def _read(layer: Any, packed: PackedSequence, first: Any) -> Any:
    """What a layer makes of a packed sequence: all states, packed, and the last ones."""
    lists: Any = packed.batch_sizes
    if layer.proj_size:
        raise _refusal("a projection (proj_size) is")
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
    layer: Any, weights: Any, lists: _Lists, source: Tensor, first: States
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


def _asked() -> UnsupportedModelError:
    return _refusal("how many lists have an item at each place (batch_sizes) is")


def _refusal(what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{what} not to be had of sequences that are packed by their lengths{calling_line()}; a "
        "captured graph has fixed shapes and keeps all places, so let a recurrent layer of torch "
        "read them, or step over the places and keep a state where its list has ended, by "
        "torch.where"
    )
