"""What people are shown of a program: its operators, and where each strategy would put them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx
from torch.utils import _pytree as pytree

from recreplay.capture.assign import STRATEGIES, assign
from recreplay.capture.dag import Dag
from recreplay.runtime.aten import target_name
from recreplay.runtime.graph import OperatorGraph, OperatorInfo
from recreplay.runtime.plan import Plan


def operator_graph(dag: Dag, nodes: Sequence[fx.Node], plans: Sequence[Plan]) -> OperatorGraph:
    """The operators of a graph with the plans that are to be shown over them."""
    operators = tuple(
        OperatorInfo(
            name=node.name,
            target=target_name(node.target),
            module=str(node.meta.get("module") or ""),
            branch=branch,
            outputs=_outputs(node),
            bytes=cost.bytes,
            flops=cost.flops,
            modelled_us=cost.time_us(),
        )
        for node, cost, branch in zip(nodes, dag.costs, dag.branches, strict=True)
    )
    return OperatorGraph(operators, dag.edges, tuple(plans))


def all_strategies(dag: Dag, captured: Plan, streams: int) -> list[Plan]:
    """The captured plan, then what the other strategies would have done with as many streams."""
    others = [s for s in STRATEGIES if s != captured.strategy]
    return [captured, *(assign(dag, strategy, streams) for strategy in others)]


def _outputs(node: fx.Node) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(
        (str(t.dtype).removeprefix("torch."), tuple(int(d) for d in t.shape))
        for t in pytree.tree_leaves(node.meta["val"])
        if isinstance(t, torch.Tensor)
    )
