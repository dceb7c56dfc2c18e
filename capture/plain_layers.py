"""Linear layers as rewrites take them: a weight `[out, in]` and, if any, a bias `[out]`.

Torch's `linear` also takes a weight `[in]`, and a bias of whatever shape its result is broadcast
with: one number for all units, or a row for each item.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx

if TYPE_CHECKING:
    from recreplay.capture.specialise import Program

aten = torch.ops.aten


def is_plain_layer(weight: fx.Node, bias: fx.Node | None = None) -> bool:
    """Whether a linear layer of these is what rewrites take it for."""
    units = weight.meta["val"].shape[:-1]
    return len(units) == 1 and (bias is None or bias.meta["val"].shape == units)


def spell_out(program: Program, source: fx.Node, weight: fx.Node, bias: Any = None) -> fx.Node:
    """Any other one as a product and a sum."""
    multiply = aten.linear.default if weight.meta["val"].ndim == 2 else aten.matmul.default
    product = program.call(multiply, source, weight)
    return product if bias is None else program.call(aten.add.Tensor, product, bias)
