"""Softmax over another dimension than the last, written so that inductor reads it as it is.

Where scores of attention go through a softmax, inductor (up to torch 2.13) takes both products and
the softmax for attention over the last dimension, whichever it is over: over queries, as slots and
low-rank attention have it, it computes something else.
"""

from __future__ import annotations

import torch
from torch import fx

from recreplay.capture.compilers.exported_calls import add_call

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
            turned = add_call(graph, aten.transpose.int, scores, dim, -1)
            weights = add_call(graph, node.target, turned, -1, *others, **node.kwargs)
            made = add_call(graph, aten.transpose.int, weights, dim, -1)
        node.replace_all_uses_with(made)
        graph.erase_node(node)
