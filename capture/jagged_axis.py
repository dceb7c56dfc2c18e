"""Which operators may touch the axis of jagged values, and lookups that leave room on it.

A bucket has more room than a request has values. What lies beyond belongs to no row, so it must
reach no row: operators on the axis work value by value, until `embedding_bag` pools them by row, or
each row gets as many places as the longest may have.
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
_POINTWISE = {aten._to_copy, aten.to, aten.clone, aten.where, aten.alias, aten.detach}
_VIEWS = {
    *(aten.view, aten.reshape, aten._unsafe_view, aten.unsqueeze, aten.squeeze, aten.expand),
    *(aten.slice, aten.select, aten.contiguous, aten.embedding),
}
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
    tags = getattr(node.target, "tags", ())
    allowed = packet in _POINTWISE or packet in _VIEWS or torch.Tag.pointwise in tags
    _refuse_unless(allowed, node, axes, "not worked on value by value")
    counted = packet not in _VIEWS and any(not _is_tensor(n) for n in touched)
    _refuse_unless(not counted, node, axes, "counted, with the room that a request does not fill")
    # The axis must stay what it was: dimension 0, whole, and no other.
    kept = [s for s in axes if _involves(first_symbol(node), s)]
    assert isinstance(value, torch.Tensor)
    shape = [symbolic(d) for d in value.shape]
    whole = len(kept) == 1 and bool(shape[0] == kept[0]) and not _axes_in(shape[1:], axes)
    _refuse_unless(whole, node, axes, "not kept as dimension 0, whole")
    same = all(first_symbol(n) in (kept[0], None, 1) for n in touched)
    _refuse_unless(same, node, axes, "mixed with another jagged input")


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
        "embedding_bag pools them by row, only elementwise operators, views and embedding can be "
        "captured"
    )
