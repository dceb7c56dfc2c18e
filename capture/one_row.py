"""Views of one row, as they are of several.

A program is exported for any number of rows, and specialised to one for a user, or for the smallest
bucket.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from recreplay.capture.program import Program
from recreplay.capture.views import can_view

aten = torch.ops.aten
VIEWS = (aten.view.default, aten._unsafe_view.default)
SQUEEZES = (aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)


def viewable(program: Program, tensor: fx.Node, shape: list[int]) -> fx.Node:
    """What can be viewed so: a user's rows that were expanded to many may have to be copied."""
    with program.fake_mode:
        if can_view(tensor.meta["val"], shape):
            return tensor
    return program.call(aten.clone.default, tensor, memory_format=torch.contiguous_format)


def squeezed(exported: fx.Node) -> list[int]:
    """The dimensions that an exported `squeeze` takes away whatever the number of rows."""
    source, *asked = exported.args
    assert isinstance(source, fx.Node)
    sizes = source.meta["val"].shape
    dims: Any = asked[0] if asked else range(len(sizes))
    listed = [dims] if isinstance(dims, int) else dims
    return [dim for dim in listed if isinstance(sizes[dim], int) and sizes[dim] == 1]
