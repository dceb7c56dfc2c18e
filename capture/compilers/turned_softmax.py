"""Softmax over another dimension than the last, written so that inductor reads it as it is.

Where scores of attention go through a softmax, inductor (up to torch 2.13) takes both products and
the softmax for attention over the last dimension, whichever it is over: over queries, as slots and
low-rank attention have it, it computes something else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
_SOFTMAXES = {aten.softmax.int, aten._softmax.default, aten._safe_softmax.default}


def turn_softmaxes(graph: fx.Graph) -> None:
    """Change `graph`, of an exported program: the dimension is the last one of a transposition, by
    which nothing is taken for attention."""
    for node in list(graph.nodes):
        if node.target not in _SOFTMAXES:
            continue
        scores, dim, *others = node.args
        dims = node.meta["val"].ndim
        if dims < 2 or dim % dims == dims - 1:
            continue
        with graph.inserting_before(node):
            turned = _call(graph, aten.transpose.int, scores, dim, -1)
            weights = _call(graph, node.target, turned, -1, *others, **node.kwargs)
            made = _call(graph, aten.transpose.int, weights, dim, -1)
        node.replace_all_uses_with(made)
        graph.erase_node(node)


def _call(graph: fx.Graph, target: Any, read: fx.Node, *args: Any, **options: Any) -> fx.Node:
    made = graph.call_function(target, (read, *args), options)
    value = read.meta["val"]
    with value.fake_mode:
        made.meta["val"] = target(value, *args, **options)
    return made
