"""Rewrite: matrix products read bfloat16 or float16, and give float32 on.

Weights that products alone read are stored so already; other operands are cast where they are read,
and results cast back, so that element-wise work, biases included, stays in float32. Torch's
products add up in float32 and round their result once, packed layers do not round it. Whatever
else reads a lowered weight, such as the fused loop of an inlined layer, reads it as float32 and so
needs no cast of its other operand.

It goes last: the other rewrites see float32 as the model has it.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import torch
from torch import fx

from recreplay.capture.lowering import readers
from recreplay.capture.products import addend, factors, is_factor, plain
from recreplay.capture.program import Program
from recreplay.capture.views import is_view
from recreplay.runtime.aten import PACKED_LINEAR
from recreplay.runtime.weight_copies import KINDS

aten = torch.ops.aten


def lower_products(program: Program, stored: AbstractSet[str], dtype: torch.dtype) -> None:
    """Rewrite `program` in place. `stored`: weights, and stacks of them, stored as `dtype`."""
    for node in list(program.graph.find_nodes(op="placeholder")):
        kind, _, name = str(node.target).partition(":")
        if kind in ("weight", *KINDS) and name in stored:
            _store(program, node, dtype)
    lowered: dict[fx.Node, fx.Node] = {}  # value -> the same in the lower type
    for node in list(program.graph.nodes):
        if factors(node) is not None and node.meta["val"].dtype == torch.float32:
            _lower(program, node, dtype, lowered)
    program.sort()
    program.prune()


def _store(program: Program, weight: fx.Node, dtype: torch.dtype) -> None:
    """Have the weight and its views be of `dtype`, and who does not multiply them read float32."""
    others = [(u, view) for u, view in readers(weight) if not is_factor(view, u)]
    weight.meta["val"] = program.fake(weight.meta["val"].shape, dtype)
    _retype_views(program, weight)
    wide: dict[fx.Node, fx.Node] = {}
    for reader, view in others:
        if view not in wide:
            wide[view] = program.call(aten.to.dtype, view, torch.float32)
        reader.replace_input_with(view, wide[view])


def _retype_views(program: Program, node: fx.Node) -> None:
    for user in node.users:
        if is_view(user):
            args, kwargs = fx.node.map_arg((user.args, user.kwargs), lambda n: n.meta["val"])
            with program.fake_mode:
                user.meta["val"] = user.target(*args, **kwargs)  # type: ignore[operator]
            _retype_views(program, user)


def _lower(
    program: Program, node: fx.Node, dtype: torch.dtype, lowered: dict[fx.Node, fx.Node]
) -> None:
    def in_type(value: fx.Node) -> fx.Node:
        if value.meta["val"].dtype == dtype:
            return value
        if value not in lowered:
            lowered[value] = program.call(aten.to.dtype, value, dtype)
        return lowered[value]

    pair = factors(node)
    assert pair is not None
    left, right = pair
    if str(node.target) == PACKED_LINEAR:
        if right.meta["val"].dtype != dtype:
            return  # something else reads this weight too, so it is stored and packed in float32
        arguments = (in_type(left), right, *node.args[2:])
        low = result = program.call(plain(node), *arguments)  # gives float32
    else:
        low = program.call(plain(node), in_type(left), in_type(right))
        result = program.call(aten.to.dtype, low, torch.float32)
        if (alpha := node.kwargs.get("alpha", 1)) != 1:
            low = result = program.call(aten.mul.Tensor, result, alpha)
        added, beta = addend(node), node.kwargs.get("beta", 1)
        if added is not None and beta != 0:
            scaled = added if beta == 1 else program.call(aten.mul.Tensor, added, beta)
            result = program.call(aten.add.Tensor, result, scaled)
            low = result
    if low is not result:
        lowered[result] = low  # back in the lower type it is what it was
    program.replace(node, result)
