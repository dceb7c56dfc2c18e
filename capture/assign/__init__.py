"""Assign operators to streams: the strategies, and the plan that each of them gives."""

from __future__ import annotations

from typing import Literal, get_args

from recreplay.capture.assign.feature import by_feature
from recreplay.capture.assign.greedy import greedily
from recreplay.capture.assign.matching import by_matching
from recreplay.capture.assign.placement import Placement, single
from recreplay.capture.dag import Dag
from recreplay.runtime.plan import Plan, check_plan

Strategy = Literal["single", "feature", "matching", "greedy"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

__all__ = ["STRATEGIES", "Strategy", "assign"]


def assign(dag: Dag, strategy: Strategy, streams: int | None = 8) -> Plan:
    """The plan of a graph on at most `streams` streams; None takes as many as the strategy wants.

    The plan is proved before it is returned, and depends on the arguments alone.
    """
    if strategy not in STRATEGIES:
        raise ValueError(
            f"unknown strategy {strategy!r}: expected single, feature, matching or greedy"
        )
    if streams is not None and streams < 1:
        raise ValueError(f"streams must be at least 1, or None for no cap: got {streams}")
    plan = _place(dag, strategy, streams).plan(strategy, dag)
    check_plan(plan)
    return plan


def _place(dag: Dag, strategy: Strategy, streams: int | None) -> Placement:
    match strategy:
        case "single":
            return single(dag)
        case "feature":
            return by_feature(dag, streams)
        case "matching":
            return by_matching(dag, streams)
        case "greedy":
            return greedily(dag, streams)
