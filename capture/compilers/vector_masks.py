"""Masks and what is counted of them, written so that inductor's loops on a CPU stay vectors.

A loop that adds up a mask, makes bytes of one, or compares bytes, goes number by number: ten to
thirty times as long as with float32 on the way, which is exact for all of them. Codes of items
(SimHash, ETA) are compared so.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import fx

from recreplay.capture.compilers.exported_calls import add_call

aten = torch.ops.aten
_BYTES = {torch.int8, torch.uint8}
_EXACT = 1 << 24  # up to which float32 counts
_COMPARISONS = {p.Tensor for p in (aten.eq, aten.ne, aten.lt, aten.le, aten.gt, aten.ge)}


def keep_vectors(graph: fx.Graph) -> None:
    """Change `graph`, of an exported program for a CPU."""
    for node in list(graph.nodes):
        made = None
        with graph.inserting_before(node):
            if node.target is aten.sum.dim_IntList:
                made = _count(graph, node, *node.args)
            elif node.target in (aten._to_copy.default, aten.to.dtype):
                made = _bytes(graph, node, *node.args)
            elif node.target in _COMPARISONS:
                made = _comparison(graph, node, *node.args)
        if made is not None:
            node.replace_all_uses_with(made)
            graph.erase_node(node)


def _count(graph: fx.Graph, node: fx.Node, mask: Any, dims: Any, *others: Any) -> fx.Node | None:
    if _dtype(mask) != torch.bool or not dims or node.kwargs.keys() - {"dtype"}:
        return None
    if node.meta["val"].is_floating_point():
        return None
    added = prod(mask.meta["val"].shape[dim] for dim in dims)
    if not isinstance(added, int) or added > _EXACT:
        return None
    total = add_call(graph, node.target, _floats(graph, mask), dims, *others[:1])
    return add_call(graph, aten._to_copy.default, total, dtype=node.meta["val"].dtype)


def _bytes(graph: fx.Graph, node: fx.Node, mask: Any, *others: Any) -> fx.Node | None:
    if _dtype(mask) != torch.bool or node.meta["val"].dtype not in _BYTES:
        return None
    read = _floats(graph, mask)
    return add_call(graph, aten._to_copy.default, read, dtype=node.meta["val"].dtype)


def _comparison(graph: fx.Graph, node: fx.Node, left: Any, right: Any) -> fx.Node | None:
    if any(_dtype(side) not in _BYTES for side in (left, right)):
        return None
    return add_call(graph, node.target, _floats(graph, left), _floats(graph, right))


def _dtype(node: Any) -> torch.dtype | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.dtype if isinstance(value, torch.Tensor) else None


def _floats(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return add_call(graph, aten._to_copy.default, node, dtype=torch.float32)
