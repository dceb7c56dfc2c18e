"""Operators that are added to an exported program before inductor compiles it."""

from __future__ import annotations

from typing import Any

from torch import fx


def add_call(graph: fx.Graph, target: Any, read: fx.Node, *args: Any, **options: Any) -> fx.Node:
    """`target(read, *args, **options)` at the graph's insertion point, with its fake value."""
    made = graph.call_function(target, (read, *args), options)
    value = read.meta["val"]
    others = [a.meta["val"] if isinstance(a, fx.Node) else a for a in args]
    with value.fake_mode:
        made.meta["val"] = target(value, *others, **options)
    return made
