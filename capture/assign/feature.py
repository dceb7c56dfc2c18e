"""The feature strategy: each feature's branch whole on one stream, the trunk on the main stream.

This is the idea of StreamRec (Niu et al., "Accelerating Recommendation Inference via GPU Streams",
DASFAA 2023; demo DASFAA 2024): the branches of a ranking model are independent by construction,
so no graph algorithm is needed to find the parallelism. The papers' balancing rule is not public;
branches are balanced here by estimated time.
"""

from __future__ import annotations

from recreplay.capture.assign.fold import fold, main_group
from recreplay.capture.assign.order import interleave
from recreplay.capture.assign.placement import Placement
from recreplay.capture.dag import Dag


def by_feature(dag: Dag, streams: int | None) -> Placement:
    by_name: dict[str, list[int]] = {}
    trunk: list[int] = []
    for node, branch in enumerate(dag.branches):
        (trunk if branch is None else by_name.setdefault(branch, [])).append(node)
    branches = list(by_name.values())
    # The trunk shares the main stream with a branch: it could not start earlier on its own.
    most = max(1, len(branches))
    cap = most if streams is None else min(streams, most)
    groups = [trunk, *branches] if trunk else branches
    placed = fold(dag, groups, cap, 0 if trunk else main_group(dag, groups))
    return Placement(placed, interleave(dag, placed, groups))
