"""Rewrite: weights that are stored in a lower type are read as float32 copies, made at load.

For a bucket whose products stay in float32 where others are lowered: with one row, casting what a
product reads can take longer than it saves.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from recreplay.capture.program import Program

_WIDE = {"weight": "wide"} | {
    kind: f"wide_{kind}" for kind in ("packed", "turned", "turned_packed")
}


def widen_weights(program: Program, stored: AbstractSet[str]) -> None:
    """Rewrite `program` in place. `stored`: weights, and stacks of them, in a lower type."""
    for node in list(program.graph.find_nodes(op="placeholder")):
        kind, _, name = str(node.target).partition(":")
        if kind in _WIDE and name in stored:
            program.replace(node, program.source(_WIDE[kind], name, node.meta["val"]))
    program.sort()
    program.prune()
