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
from torch._prims_common import is_contiguous_or_false

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
            made = rule(graph, node, *node.args, **node.kwargs)
        if made is not None:
            node.replace_all_uses_with(made)
            graph.erase_node(node)


def _is_plain(node: fx.Node) -> bool:
    """Whether it reads a tensor, and has no arguments by name but where all are read."""
    value = node.args[0].meta.get("val") if isinstance(node.args[0], fx.Node) else None
    by_name = node.target is aten.to.dtype_layout
    return (by_name or not node.kwargs) and isinstance(value, torch.Tensor)


def _call(
    graph: fx.Graph, node: fx.Node, target: Any, args: tuple[Any, ...], **options: Any
) -> fx.Node:
    """An operator in the place of `node`, with the same result."""
    made = graph.call_function(target, args, options)
    made.meta = dict(node.meta)
    return made


def _view(graph: fx.Graph, node: fx.Node, source: fx.Node, shape: Sequence[Any]) -> fx.Node:
    """`node` as a view of `source`, or of a copy where its rows do not adjoin."""
    whole = source.meta["val"]
    sizes = [s.meta["val"] if isinstance(s, fx.Node) else s for s in shape]
    with whole.fake_mode:
        viewable = can_view(whole, sizes)
        laid_out = whole if viewable else whole.contiguous()
    if viewable:
        return _call(graph, node, aten.view.default, (source, list(shape)))
    copy = _laid_out(graph, node, source)
    copy.meta["val"] = laid_out
    return _call(graph, node, aten._unsafe_view.default, (copy, list(shape)))


def _laid_out(graph: fx.Graph, node: fx.Node, source: fx.Node) -> fx.Node:
    layout = torch.contiguous_format
    return _call(graph, node, aten.clone.default, (source,), memory_format=layout)


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
    known = all(isinstance(size, int) for size in merged)
    sizes: list[Any] = [
        _size(graph, source, dim) for dim in range(dims) if not first <= dim <= last
    ]
    sizes.insert(first, prod(merged) if known else -1)
    return _view(graph, node, source, sizes)


def _unflatten(
    graph: fx.Graph, node: fx.Node, source: fx.Node, dim: int, sizes: Sequence[Any]
) -> fx.Node:
    dims = source.meta["val"].ndim
    shape = [_size(graph, source, d) for d in range(dims) if d != dim % dims]
    shape[dim % dims : dim % dims] = sizes
    return _view(graph, node, source, shape)


def _batch_norm(
    graph: fx.Graph,
    node: fx.Node,
    source: fx.Node,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    training: bool,
    *others: Any,
) -> fx.Node | None:
    """By statistics that were kept; two results more say nothing then."""
    if training or mean is None or variance is None:
        return None
    momentum, eps, _ = others
    target = aten._native_batch_norm_legit_no_training.default
    args = (source, weight, bias, mean, variance, momentum, eps)
    normed = _call(graph, node, target, args)
    empty = node.meta["val"].new_empty(0)
    normed.meta["val"] = (node.meta["val"], empty, empty)
    return _call(graph, node, operator.getitem, (normed, 0))


def _to_dtype(
    graph: fx.Graph,
    node: fx.Node,
    source: fx.Node,
    dtype: torch.dtype,
    _non_blocking: bool = False,
    copy: bool = False,
    memory_format: object = None,
) -> fx.Node | None:
    if memory_format is not None:  # another layout
        return None
    if source.meta["val"].dtype == dtype and not copy:
        return source
    return _call(graph, node, aten._to_copy.default, (source,), dtype=dtype)


def _to_device(
    graph: fx.Graph, node: fx.Node, source: fx.Node, _device: Any, dtype: Any, *others: Any
) -> fx.Node | None:
    if node.meta["val"].device != source.meta["val"].device:
        return None
    return _to_dtype(graph, node, source, dtype, *others)


def _to_layout(graph: fx.Graph, node: fx.Node, source: fx.Node, **given: Any) -> fx.Node | None:
    if node.meta["val"].layout != source.meta["val"].layout:
        return None
    others = (given.get(name) for name in ("non_blocking", "copy", "memory_format"))
    return _to_device(graph, node, source, None, node.meta["val"].dtype, *others)


def _contiguous(graph: fx.Graph, node: fx.Node, source: fx.Node) -> fx.Node:
    return source if is_contiguous_or_false(source.meta["val"]) else _laid_out(graph, node, source)


def _dropout(
    graph: fx.Graph, node: fx.Node, source: fx.Node, _share: float, training: bool
) -> fx.Node | None:
    return None if training else _clone(graph, node, source)


def _clone(graph: fx.Graph, node: fx.Node, source: fx.Node) -> fx.Node:
    return _call(graph, node, aten.clone.default, (source,))


def _same(graph: fx.Graph, node: fx.Node, source: fx.Node) -> fx.Node:
    return source


def _narrow(
    graph: fx.Graph, node: fx.Node, source: fx.Node, dim: int, start: Any, length: Any
) -> fx.Node | None:
    size = source.meta["val"].shape[dim]
    if not all(isinstance(number, int) for number in (size, start, length)):
        return None
    start %= size
    return _call(graph, node, aten.slice.Tensor, (source, dim, start, start + length))


def _numpy_t(graph: fx.Graph, node: fx.Node, source: fx.Node) -> fx.Node:
    dims = list(range(source.meta["val"].ndim))
    return _call(graph, node, aten.permute.default, (source, dims[::-1]))


def _m_t(graph: fx.Graph, node: fx.Node, source: fx.Node) -> fx.Node:
    return _call(graph, node, aten.transpose.int, (source, -2, -1))


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
    aten.unflatten.int: _unflatten,
    aten.batch_norm.default: _batch_norm,
    aten.to.dtype: _to_dtype,
    aten.to.device: _to_device,
    aten.to.dtype_layout: _to_layout,
    aten.contiguous.default: _contiguous,
    aten.chunk.default: _chunk,
    aten.dropout.default: _dropout,
    aten.lift_fresh_copy.default: _clone,
    aten.detach_.default: _same,
    aten.narrow.default: _narrow,
    aten.numpy_T.default: _numpy_t,
    aten.mT.default: _m_t,
    aten.expand_as.default: _expand_as,
    aten.sym_numel.default: _numel,
}
