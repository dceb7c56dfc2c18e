"""The issue order: one topological order over all streams, in which the host launches.

Issuing in one global topological order makes every assignment free of deadlock, because a wait
can only be for something already issued. Among the topological orders the choice matters for
speed: what is launched late starts late.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

from recreplay.capture.dag import Dag, predecessors, successors


def interleave(
    dag: Dag, streams: Sequence[int], groups: Sequence[Sequence[int]]
) -> tuple[int, ...]:
    """Issue one operator per stream in turn, so that all streams start at once.

    Within a stream a group (a branch, a chain) that was begun is continued while it can be:
    its consumers then wait for nothing else, its values are still in cache, and segments cut from
    the stream hold whole branches.
    """
    group_of = {node: g for g, group in enumerate(groups) for node in group}
    ready: list[list[int]] = [[] for _ in range(max(streams) + 1)]  # per stream, a heap
    ready_in: list[list[int]] = [[] for _ in groups]  # the same operators, per group
    last: list[int | None] = [None] * len(ready)
    missing, following = [len(p) for p in predecessors(dag)], successors(dag)
    issued: dict[int, None] = {}  # an ordered set

    def release(node: int) -> None:
        heappush(ready[streams[node]], node)
        heappush(ready_in[group_of[node]], node)

    def pop(stream: int) -> int | None:
        group = last[stream]
        # Either heap may still hold operators that were taken from the other one.
        for heap in ([] if group is None else ready_in[group], ready[stream]):
            while heap:
                node = heappop(heap)
                if node not in issued:
                    return node
        return None

    for node, count in enumerate(missing):
        if count == 0:
            release(node)
    while len(issued) < len(dag.names):
        for stream in range(len(ready)):
            chosen = pop(stream)
            if chosen is None:
                continue
            issued[chosen] = None
            last[stream] = group_of[chosen]
            for consumer in following[chosen]:
                missing[consumer] -= 1
                if missing[consumer] == 0:
                    release(consumer)
    return tuple(issued)


def alternate(dag: Dag) -> tuple[int, ...]:
    """Alternate between memory-bound and compute-bound operators, the least demanding first.

    Opara (IEEE TC 2025) keeps two ready queues, so that neighbours in launch order need different
    parts of the device and fit beside each other. It measures demand as shared memory per block;
    before anything is compiled only the cost estimate is known, so that takes its place.
    """
    queues: tuple[list[tuple[float, int]], list[tuple[float, int]]] = ([], [])
    missing, following = [len(p) for p in predecessors(dag)], successors(dag)

    def release(node: int) -> None:
        cost = dag.costs[node]
        heappush(queues[cost.compute_bound()], (cost.time_us(), node))

    for node, count in enumerate(missing):
        if count == 0:
            release(node)
    order: list[int] = []
    turn = 0  # memory-bound first: lookups are, and they head the branches
    while queues[0] or queues[1]:
        _, node = heappop(queues[turn] or queues[1 - turn])
        order.append(node)
        turn = 1 - turn
        for consumer in following[node]:
            missing[consumer] -= 1
            if missing[consumer] == 0:
                release(consumer)
    return tuple(order)
