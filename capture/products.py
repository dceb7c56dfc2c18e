"""The matrix products of a program: which arguments they multiply, and what they add."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from recreplay.runtime.aten import PACKED_LINEAR

aten = torch.ops.aten
_FACTORS: dict[str, tuple[int, int]] = {
    "aten.linear.default": (0, 1),
    "aten.mm.default": (0, 1),
    "aten.bmm.default": (0, 1),
    "aten.matmul.default": (0, 1),
    PACKED_LINEAR: (0, 1),
    "aten.addmm.default": (1, 2),  # after what they add
    "aten.baddbmm.default": (1, 2),
}
_PLAIN: dict[Any, Any] = {
    aten.addmm.default: aten.mm.default,
    aten.baddbmm.default: aten.bmm.default,
}


def factors(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """What a matrix product multiplies, or None for anything else."""
    places = _FACTORS.get(str(node.target))
    if places is None:
        return None
    left, right = (node.args[at] for at in places)
    assert isinstance(left, fx.Node)
    assert isinstance(right, fx.Node)
    return left, right


def addend(node: fx.Node) -> fx.Node | None:
    """What a product adds, such as the bias of a linear layer."""
    at = 0 if node.target in _PLAIN else 2
    found = (
        node.args[at] if len(node.args) > at and node.target is not aten.matmul.default else None
    )
    return found if isinstance(found, fx.Node) else None


def plain(node: fx.Node) -> Any:
    """The operator that multiplies the factors of a product and adds nothing."""
    return _PLAIN.get(node.target, node.target)


def is_factor(value: fx.Node, reader: fx.Node) -> bool:
    """Whether `reader` is a product that multiplies `value` and does not add it too."""
    return value in (factors(reader) or ()) and addend(reader) is not value
