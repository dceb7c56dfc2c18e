"""The program of a bucket: a graph of static shapes, and how operators are put into it."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree

from recreplay.runtime.made_weights import Made


@dataclass
class Program:
    """A static ATen graph of one bucket.

    Placeholders are named by where their value comes from: `input:NAME`, `staged:GROUP` (ids of
    several inputs that lie side by side), `weight:NAME`, copies of a weight such as `packed:NAME`
    (see `recreplay.runtime.weight_copies`) or `const:HASH`. `meta["val"]` of each node is
    its fake tensor. `outputs` are the nodes that hold the model's outputs, each a node of its own.
    `made` are the weights that the model computes of others.
    """

    bucket: int
    graph: fx.Graph
    outputs: dict[str, fx.Node]
    constants: dict[str, torch.Tensor]
    fake_mode: FakeTensorMode
    staged: dict[str, tuple[str, ...]] = field(default_factory=dict)
    dividers: frozenset[str] = frozenset()
    made: dict[str, Made] = field(default_factory=dict)
    folds: bool = True  # whether what is computed of weights alone becomes a weight
    placeholders: dict[str, fx.Node] = field(default_factory=dict)  # in their order, by target

    def source(self, kind: str, name: str, value: FakeTensor) -> fx.Node:
        """The placeholder `kind:name`, made when it is first asked for."""
        target = f"{kind}:{name}"
        if target in self.placeholders:
            return self.placeholders[target]
        last = next(reversed(self.placeholders.values()), None)
        with self.graph.inserting_after(last) if last else self.graph.inserting_before():
            node = self.graph.create_node("placeholder", target, name=_identifier(kind, name))
        node.meta["val"] = value
        self.placeholders[target] = node
        return node

    def find(self, target: str) -> fx.Node:
        """A placeholder that is there."""
        return self.placeholders[target]

    def constant(self, value: torch.Tensor) -> fx.Node:
        """A placeholder for a folded value, stored once by content."""
        # A copy: of one item, any stride counts as contiguous.
        value = value.detach().clone(memory_format=torch.contiguous_format).cpu()
        raw = value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
        key = hashlib.sha256(f"{value.dtype}{tuple(value.shape)}".encode() + raw).hexdigest()[:16]
        self.constants[key] = value
        node = self.source("const", key, self.fake(value.shape, value.dtype))
        node.meta["constant"] = value
        return node

    def fake(self, shape: Any, dtype: torch.dtype) -> FakeTensor:
        with self.fake_mode:
            return cast(FakeTensor, torch.empty(tuple(shape), dtype=dtype))

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """Append an operator at the graph's insertion point, with its fake value."""
        node = self.graph.call_function(target, args, kwargs)
        with self.fake_mode:
            values, options = pytree.tree_map_only(fx.Node, lambda n: n.meta["val"], (args, kwargs))
            node.meta["val"] = target(*values, **options)
        return node

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Have everything that reads `old`, the program's outputs included, read `new`."""
        for name, node in self.outputs.items():
            if node is old:
                self.outputs[name] = new
        old.replace_all_uses_with(new)

    def sort(self) -> None:
        """Put the operators into a topological order again, as near to the present one as can
        be."""
        position = {node: i for i, node in enumerate(self.graph.nodes)}
        missing = {n: len(n.all_input_nodes) for n in position}
        ready = [i for n, i in position.items() if not missing[n]]
        nodes = list(position)
        last: fx.Node | None = None
        while ready:
            node = nodes[heapq.heappop(ready)]
            if last is not None:
                last.append(node)
            last = node
            for user in node.users:
                missing[user] -= 1
                if not missing[user]:
                    heapq.heappush(ready, position[user])

    def prune(self) -> None:
        """Drop operators that no output needs; inputs and weights stay only where they are read."""
        kept = set(self.outputs.values())
        for node in reversed(self.graph.nodes):
            if node not in kept and not node.users:
                self.placeholders.pop(str(node.target), None)
                self.graph.erase_node(node)
        live = {*self.placeholders, *(s for made in self.made.values() for s in made.sources)}
        self.constants = {k: v for k, v in self.constants.items() if f"const:{k}" in live}


def _identifier(kind: str, name: str) -> str:
    return f"{kind}_" + "".join(c if c.isalnum() else "_" for c in name)
