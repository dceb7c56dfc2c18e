"""Operators that stand for others, exchanged for those one by one.

torch exchanges them by tracing the whole program again, twice: 1 s for a DLRM that reshapes, 12 s
for DIEN. Those that models use most are exchanged here, for what torch makes of them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import fx

from recreplay.capture.views import can_view

aten = torch.ops.aten
# Takes the graph, the operator, and the arguments of that.
Rule = Callable[..., "fx.Node | None"]


def exchange_stand_ins(graph: fx.Graph) -> None:
    """Change `graph`, of an exported program that nobody else has, where it is known how; the rest
    stays as it is."""
    for node in list(graph.nodes):
        rule = _RULES.get(node.target)
        if rule is None or not _is_plain(node):
            continue
        with graph.inserting_before(node):
            made = rule(graph, node, *node.args)
        if made is not None:
            node.replace_all_uses_with(made)
            graph.erase_node(node)


def _is_plain(node: fx.Node) -> bool:
    """Whether it has no arguments by name, and reads a tensor."""
    value = node.args[0].meta.get("val") if isinstance(node.args[0], fx.Node) else None
    return not node.kwargs and isinstance(value, torch.Tensor)


def _call(
    graph: fx.Graph, node: fx.Node, target: Any, args: tuple[Any, ...], **options: Any
) -> fx.Node:
    """An operator in the place of `node`, with the same result."""
    made = graph.call_function(target, args, options)
    made.meta = dict(node.meta)
    return made


def _view(graph: fx.Graph, node: fx.Node, source: fx.Node, shape: Sequence[Any]) -> fx.Node | None:
    """`node` as a view of `source`, if it can be one."""
    whole = source.meta["val"]
    sizes = [s.meta["val"] if isinstance(s, fx.Node) else s for s in shape]
    with whole.fake_mode:
        if not can_view(whole, sizes):  # its rows do not adjoin
            return None
    return _call(graph, node, aten.view.default, (source, list(shape)))


def _size(graph: fx.Graph, tensor: fx.Node, dim: int) -> Any:
    """A size of a tensor, as a number or as an operator that gives it."""
    size = tensor.meta["val"].shape[dim]
    if isinstance(size, int):
        return size
    made = graph.call_function(aten.sym_size.int, (tensor, dim))
    made.meta["val"] = size
    return made


def _flatten(
    graph: fx.Graph, node: fx.Node, source: fx.Node, first: int = 0, last: int = -1
) -> fx.Node | None:
    dims = source.meta["val"].ndim
    if dims == 0:
        return None
    first, last = first % dims, last % dims
    merged = source.meta["val"].shape[first : last + 1]
    if len(merged) == 1:
        return source
    if not all(isinstance(size, int) for size in merged):
        return None
    sizes = [_size(graph, source, dim) for dim in range(dims) if not first <= dim <= last]
    return _view(graph, node, source, [*sizes[:first], prod(merged), *sizes[first:]])


def _to_dtype(
    graph: fx.Graph, node: fx.Node, source: fx.Node, dtype: torch.dtype, *others: object
) -> fx.Node | None:
    if any(others):  # a copy, or another layout
        return None
    if source.meta["val"].dtype == dtype:
        return source
    return _call(graph, node, aten._to_copy.default, (source,), dtype=dtype)


def _chunk(
    graph: fx.Graph, node: fx.Node, source: fx.Node, chunks: int, dim: int = 0
) -> fx.Node | None:
    size = source.meta["val"].shape[dim]
    if not isinstance(size, int) or size == 0:
        return None
    return _call(graph, node, aten.split.Tensor, (source, -(-size // chunks), dim))


def _expand_as(graph: fx.Graph, node: fx.Node, source: fx.Node, other: fx.Node) -> fx.Node:
    sizes = [_size(graph, other, dim) for dim in range(other.meta["val"].ndim)]
    return _call(graph, node, aten.expand.default, (source, sizes))


def _numel(graph: fx.Graph, node: fx.Node, source: fx.Node) -> fx.Node | None:
    product: Any = 1
    for dim in range(source.meta["val"].ndim):
        size = _size(graph, source, dim)
        if isinstance(product, int) and isinstance(size, int):
            product *= size
            continue
        factors = (product, size)
        product = graph.call_function(operator.mul, factors)
        product.meta["val"] = prod(f.meta["val"] if isinstance(f, fx.Node) else f for f in factors)
    return product if isinstance(product, fx.Node) else None


_RULES: dict[Any, Rule] = {
    aten.reshape.default: _view,
    aten.flatten.using_ints: _flatten,
    aten.to.dtype: _to_dtype,
    aten.chunk.default: _chunk,
    aten.expand_as.default: _expand_as,
    aten.sym_numel.default: _numel,
}
