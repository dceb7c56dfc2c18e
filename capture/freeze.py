"""Arguments of operators: as something that can be compared and hashed, and the tensors in them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree


def freeze(arg: Any, of_node: Callable[[fx.Node], Hashable]) -> Hashable:
    """`arg`, lists and dicts included; numbers of different types differ, as 1 and True do."""
    if isinstance(arg, fx.Node):
        return of_node(arg)
    if isinstance(arg, (list, tuple)):
        return tuple(freeze(a, of_node) for a in arg)
    if isinstance(arg, dict):
        return tuple(sorted((k, freeze(v, of_node)) for k, v in arg.items()))
    return (type(arg).__name__, str(arg))


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """Those in arguments or results, however they are nested, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
