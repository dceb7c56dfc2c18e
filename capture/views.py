"""Which operators are views: they move no bytes, so they are recomputed wherever they are read.

A plan therefore speaks of the operators that launch work. A view belongs to whoever reads it, and
what crosses from one stream or segment to another is always the contiguous result of a real
operator.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
_MAY_COPY = {aten.to, aten.contiguous}


def is_view(node: fx.Node) -> bool:
    """True for an alias of another tensor, or one element of a tuple."""
    if node.target is operator.getitem:
        return True
    return isinstance(node.target, torch._ops.OpOverload) and aliases(node.target)


def aliases(target: torch._ops.OpOverload) -> bool:
    """Whether what an operator gives is memory of what it reads."""
    if target.overloadpacket in _MAY_COPY:
        return False
    returns = target._schema.returns
    return len(returns) > 0 and returns[0].alias_info is not None


def base(node: fx.Node) -> fx.Node:
    """The placeholder or launching operator that a chain of views looks at."""
    while node.op == "call_function" and is_view(node):
        node = node.all_input_nodes[0]
    return node


def slice_arguments(node: fx.Node) -> tuple[Any, Any, Any, Any]:
    """Dimension, start, end and step of an `aten.slice`, defaults filled in; None is no limit."""
    given: list[Any] = list(node.args[1:])
    dim, start, end, step = given + [0, None, None, 1][len(given) :]
    return dim, start, end, step


def row_from_front(cut: fx.Node, at: int) -> int:
    """Where row `at` of what is cut lies: it may be counted from the end, and of slices beyond
    either."""
    rows = int(cut.args[0].meta["val"].shape[0])  # type: ignore[union-attr]
    return min(max(at + rows, 0), rows) if at < 0 else min(at, rows)


def launches(graph: fx.Graph) -> list[fx.Node]:
    """The operators that launch work, in program order."""
    return [n for n in graph.nodes if n.op == "call_function" and not is_view(n)]


def can_view(tensor: torch.Tensor, shape: Sequence[Any]) -> bool:
    """Whether a real tensor that lies as this fake one does can be viewed so. Over a dimension of
    one, torch takes any view of a fake tensor for possible."""
    ones = [dim for dim, size in enumerate(tensor.shape) if isinstance(size, int) and size == 1]
    try:
        tensor.squeeze(ones).view(shape)
    except (RuntimeError, ValueError):
        return False
    return True
