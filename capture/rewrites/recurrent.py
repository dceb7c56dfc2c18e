"""Rewrite: GRU and LSTM layers are products with all inputs at once, and steps by a function of
ours.

A model with 20 steps of 64 values replays in 11 us at batch 1 so, and its layer alone takes 52 with
torch's operator; at 16 rows these are 94 and 272, at 128 762 and 1,715 (GRU, one Zen 5 core). Of
LSTM layers torch has a function too, that of oneDNN, which with many rows and a weight that fills a
second cache is faster: 20 steps of 512 values take 39 to 45 ms by ours at 128 rows and 26 by that.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from recreplay.capture.program import Program
from recreplay.runtime.aten import GRU, LSTM, resolve

aten = torch.ops.aten
_GATES = {GRU: 3, LSTM: 4}
_LARGE = 1 << 20  # bytes of a recurrent weight
_MANY = 16  # rows by which torch's LSTM makes up for what it costs to call
_NARROWEST = 16  # values of a state, which fill a vector of any processor


def recurrent(program: Program) -> None:
    """Rewrite `program` in place."""
    for target, own in ((aten.gru.input, GRU), (aten.lstm.input, LSTM)):
        for node in list(program.graph.find_nodes(op="call_function", target=target)):
            if not _is_plain(node, own):
                continue
            with program.graph.inserting_before(node):
                results = _layers(program, own, *node.args)
            for result in list(node.users):
                program.replace(result, results[result.args[1]])
    program.sort()
    program.prune()


def _is_plain(node: fx.Node, own: str) -> bool:
    """Whether its weights are stored ones of float32, without a projection, and of a state that
    fills vectors; and whether no cell is read but by the next step."""
    source, first, weights = node.args[:3]
    state = _firsts(first)[0]
    hidden = state.meta["val"].shape[-1]
    matrices = [w.meta["val"] for w in weights if w.meta["val"].ndim == 2]  # type: ignore[union-attr]
    return (
        all(u.target is operator.getitem and u.args[1] in (0, 1) for u in node.users)
        and all(str(w.target).startswith("weight:") for w in weights)  # type: ignore[union-attr]
        and all(m.shape[0] == _GATES[own] * hidden for m in matrices)
        and all(n.meta["val"].dtype == torch.float32 for n in node.all_input_nodes)
        and source.meta["val"].ndim == 3  # type: ignore[union-attr]
        and hidden >= _NARROWEST
        and not (own == LSTM and _is_wide(state, matrices))
    )


def _firsts(given: Any) -> list[fx.Node]:
    """The states before the first step, and of an LSTM its cells."""
    return list(given) if isinstance(given, (list, tuple)) else [given]


def _is_wide(state: fx.Node, matrices: list[torch.Tensor]) -> bool:
    """Whether torch's own function of LSTM layers is the faster one."""
    large = any(m.nbytes >= _LARGE for m in matrices[1::2])
    return bool(large and state.meta["val"].shape[1] >= _MANY)


def _layers(
    program: Program,
    own: str,
    source: Any,
    first: Any,
    weights: Any,
    biased: Any,
    layers: Any,
    _dropout: Any,
    _train: Any,
    bidirectional: Any,
    batch_first: Any,
) -> tuple[fx.Node, fx.Node]:
    """The states of the last layer, as torch has them, and the last one of each."""
    call = program.call
    if not batch_first:
        source = call(aten.transpose.int, source, 0, 1)
    each = 4 if biased else 2
    last: list[fx.Node] = []
    for _ in range(layers):
        ways = []
        for reverse in (False, True) if bidirectional else (False,):
            at = len(last)
            wide, recurs, *biases = weights[at * each : (at + 1) * each]
            gates = call(aten.linear.default, source, wide, *biases[:1])
            name = str(recurs.target).partition(":")[2]
            turned = program.source("turned", name, recurs.meta["val"].t().contiguous())
            before = [call(aten.select.int, f, 0, at) for f in _firsts(first)]
            bias = biases[1] if biased else None
            states = call(resolve(own), gates, *before, turned, bias, reverse)
            ways.append(states)
            last.append(call(aten.select.int, states, 1, 0 if reverse else -1))
        source = ways[0] if len(ways) == 1 else call(aten.cat.default, ways, 2)
    if not batch_first:
        source = call(aten.transpose.int, source, 0, 1)
    return source, call(aten.stack.default, last, 0)
