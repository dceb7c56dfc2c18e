"""Which operators may touch the axis of jagged values, and lookups that leave room on it.

A bucket has more room than a request has values. What lies beyond belongs to no row, so it must
reach no row: operators on the axis work value by value, until `embedding_bag` pools them by row, or
each row gets as many places as the longest may have. Of those, values may be made again.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from recreplay.capture.declared import Declared
from recreplay.capture.refusals import stack_line
from recreplay.runtime.errors import UnsupportedModelError

aten = torch.ops.aten
_POINTWISE = {aten._to_copy, aten.to, aten.clone, aten.where, aten.alias, aten.detach, aten.dropout}
_VIEWS = {
    *(aten.view, aten.reshape, aten._unsafe_view, aten.unsqueeze, aten.squeeze, aten.expand),
    *(aten.slice, aten.select, aten.contiguous, aten.embedding, aten.transpose, aten.permute),
    *(aten.flatten, aten.unflatten, aten.split, aten.split_with_sizes, aten.chunk, aten.unbind),
}
# What they do with dimension 0 their results show: it is there, whole, or it is not.
_SHOWN = {aten.sum, aten.mean, aten.amax, aten.amin, aten.any, aten.all, aten.argmax}
_SHOWN |= {aten.argmin, aten.linalg_vector_norm, aten.norm, aten.cat}
# Layers over the last dimensions of what they are given first.
_LAYERS = {aten.linear, aten.matmul, aten.mm, aten.layer_norm, aten.rms_norm, aten.softmax}
_LAYERS |= {aten._softmax, aten.glu}
BAG_ARGUMENTS = (
    "weight",
    "indices",
    "offsets",
    "scale_grad_by_freq",
    "mode",
    "sparse",
    "per_sample_weights",
    "include_last_offset",
    "padding_idx",
)


def first_symbol(node: fx.Node) -> Any:
    """The size of dimension 0 as sympy has it, or None for anything but a tensor with one."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or not value.ndim:
        return None
    return symbolic(value.shape[0])


def symbolic(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else size


def bag_arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an `embedding_bag` by name. A `padding_idx` that counts from the end, as -1
    does too, is that from the beginning."""
    arguments = name_bag_arguments(node.args, node.kwargs)
    padding = arguments.get("padding_idx")
    if padding is not None and padding < 0:
        arguments["padding_idx"] = padding + int(arguments["weight"].meta["val"].shape[0])
    return arguments


def name_bag_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return dict(zip(BAG_ARGUMENTS, args, strict=False)) | dict(kwargs)


def check_jagged(
    exported: ExportedProgram, inputs: Sequence[fx.Node], declared: Mapping[str, Declared]
) -> None:
    """Refuse operators that mix values of different rows, or count the room among the values.

    `inputs` are the placeholders of the inputs in `declared`, in its order.
    """
    axes: dict[Any, str] = {}  # the symbol of a number of values -> the input that holds them
    for (name, told), node in zip(declared.items(), inputs, strict=True):
        if told.kind == "values":
            symbol = first_symbol(node)
            if axes.setdefault(symbol, name) != name and declared[axes[symbol]].along != told.along:
                raise UnsupportedModelError(
                    f"inputs {axes[symbol]!r} and {name!r} have one number of values in the "
                    "exported program; divide them by the same offsets, or export it with a "
                    "dimension of its own for each"
                )
    for node in exported.graph.nodes if axes else ():
        if node.op == "call_function":
            _check_operator(node, axes)
        elif node.op == "output":
            for result in node.all_input_nodes:
                _refuse_unless(not _axes_of(result, axes), result, axes, "returned by the model")


def _check_operator(node: fx.Node, axes: Mapping[Any, str]) -> None:
    value = node.meta.get("val")
    if not any(isinstance(v, torch.Tensor) for v in pytree.tree_leaves(value)):
        return  # numbers and assertions
    touched = [n for n in node.all_input_nodes if _axes_of(n, axes)]
    if not touched:
        return
    packet = getattr(node.target, "overloadpacket", None)
    if packet is aten.embedding_bag:
        arguments = bag_arguments(node)
        for name in ("weight", "offsets"):
            _refuse_unless(arguments[name] not in touched, node, axes, "no ids of a lookup")
        for user in node.users:
            pooled = user.target is operator.getitem and bool(user.args[1] == 0)
            _refuse_unless(pooled, node, axes, "read for more than its pooled rows")
        return
    if node.target is operator.getitem:
        return
    if packet is aten._jagged_to_padded_dense_forward:
        _refuse_unless(touched == [node.args[0]], node, axes, "not only what is padded")
        return
    if packet is aten._padded_dense_to_jagged_forward:
        _refuse_unless(touched == [node.args[2]], node, axes, "not only what places become")
    else:
        _refuse_unless(_is_by_value(node, touched), node, axes, "not worked on value by value")
        counted = packet not in _VIEWS and any(not _is_tensor(n) for n in touched)
        problem = "counted, with the room that a request does not fill"
        _refuse_unless(not counted, node, axes, problem)
    # The axis must stay what it was: dimension 0, whole, and no other.
    for result in pytree.tree_leaves(value):
        shape = [symbolic(d) for d in result.shape]
        kept = [s for s in axes if shape and _involves(shape[0], s)]
        whole = len(kept) == 1 and bool(shape[0] == kept[0]) and not _axes_in(shape[1:], axes)
        _refuse_unless(whole, node, axes, "not kept as dimension 0, whole")
        same = all(first_symbol(n) in (kept[0], None, 1) for n in touched)
        _refuse_unless(same, node, axes, "mixed with another jagged input")


def _is_by_value(node: fx.Node, touched: Sequence[fx.Node]) -> bool:
    """Whether values of the result are made of their own alone, unless its shape says else."""
    packet = getattr(node.target, "overloadpacket", None)
    if packet in _LAYERS:
        given, *others = node.args
        assert isinstance(given, fx.Node)
        return [given] == list(touched) and _is_over_the_last(
            packet, given.meta["val"].ndim, others
        )
    tags = getattr(node.target, "tags", ())
    return packet in {*_POINTWISE, *_VIEWS, *_SHOWN} or torch.Tag.pointwise in tags


def _is_over_the_last(packet: Any, dimensions: int, others: Sequence[Any]) -> bool:
    """Whether a layer leaves dimension 0 of what it is given apart."""
    if packet in (aten.softmax, aten._softmax, aten.glu):
        dim = others[0] if others else -1
        return bool(dim % dimensions)
    if packet in (aten.layer_norm, aten.rms_norm):
        return len(others[0]) < dimensions
    return dimensions > 1


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _axes_of(node: fx.Node, axes: Mapping[Any, str]) -> list[Any]:
    """The jagged axes that the shape of a tensor has, or that a number was computed from."""
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return _axes_in([symbolic(d) for d in value.shape], axes)
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return _axes_in([value.node.expr], axes)
    return []


def _axes_in(sizes: Sequence[Any], axes: Mapping[Any, str]) -> list[Any]:
    return [s for s in axes if any(_involves(size, s) for size in sizes)]


def _involves(size: Any, symbol: Any) -> bool:
    return symbol in getattr(size, "free_symbols", ())


def _refuse_unless(fine: bool, node: fx.Node, axes: Mapping[Any, str], problem: str) -> None:
    if fine:
        return
    about = [axes[s] for n in (node, *node.all_input_nodes) for s in _axes_of(n, axes)]
    raise UnsupportedModelError(
        f"operator {node.target}{stack_line(node)}: the values of jagged input "
        f"{about[0] if about else next(iter(axes.values()))!r} are {problem}; before "
        "embedding_bag pools them by row, only what works on each value by itself can be captured: "
        "elementwise operators, views, embedding, and layers over other dimensions"
    )
