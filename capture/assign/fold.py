"""Fold groups of operators onto few streams, balanced by estimated time.

A group stays whole. Groups go longest first to the least loaded stream: the LPT rule (Graham,
"Bounds on multiprocessing timing anomalies", 1969), with one change. Operators that never run
side by side do not compete for a stream, and a ranking model is full of those: the trunk starts
when the branches have ended. So load is counted per phase of the program, and a group looks only
at the load in the phases where it has work itself. Plain LPT would see the main stream filled up
by the trunk and leave it without branches.
"""

from __future__ import annotations

from collections.abc import Sequence

from recreplay.capture.dag import Dag, descendants


def fold(
    dag: Dag, groups: Sequence[Sequence[int]], streams: int | None, main: int
) -> tuple[int, ...]:
    """The stream of each operator. Group number `main` goes to stream 0.

    With a stream for each group, or no cap, each gets its own, the others in the order given.
    """
    if streams is None or streams >= len(groups):
        placed = [g + 1 if g < main else g for g in range(len(groups))]
        placed[main] = 0
    else:
        placed = _balance(dag, groups, streams, main)
    stream = [0] * len(dag.names)
    for group, number in zip(groups, placed, strict=True):
        for node in group:
            stream[node] = number
    return tuple(stream)


def main_group(dag: Dag, groups: Sequence[Sequence[int]]) -> int:
    """The heaviest of the groups that hold an operator nobody consumes; the first of equals."""
    consumed = {producer for producer, _ in dag.edges}
    times = _times(dag)
    ends = [g for g, group in enumerate(groups) if any(node not in consumed for node in group)]
    return max(ends, key=lambda g: (sum(times[node] for node in groups[g]), -g))


def phases(dag: Dag) -> tuple[int, ...]:
    """A number for each operator; operators with different numbers seldom overlap in time.

    Phase 0 is the work of the branches. The trunk, which needs several branches, is divided at
    the operators that are ordered against all others: nothing runs beside them, so what comes
    before and what comes after never overlap.
    """
    n = len(dag.names)
    reach = descendants(dag)
    ancestors = [0] * n
    for producer, consumer in sorted(dag.edges, key=lambda edge: edge[1]):
        ancestors[consumer] |= ancestors[producer] | 1 << producer
    result = []
    phase = 1
    for node in range(n):
        # All operators before such a point in program order are its ancestors.
        if ancestors[node].bit_count() + reach[node].bit_count() == n - 1:
            phase += 1
        result.append(phase if dag.branches[node] is None else 0)
    return tuple(result)


def _balance(dag: Dag, groups: Sequence[Sequence[int]], streams: int, main: int) -> list[int]:
    phase = phases(dag)
    times = _times(dag)
    work: list[dict[int, float]] = []  # per group: time in each phase
    for group in groups:
        share: dict[int, float] = {}
        for node in group:
            share[phase[node]] = share.get(phase[node], 0.0) + times[node]
        work.append(share)
    load: list[dict[int, float]] = [{} for _ in range(streams)]

    def rival(stream: int, group: int) -> float:
        return sum(load[stream].get(p, 0.0) for p in work[group])

    placed = [0] * len(groups)
    longest_first = sorted(range(len(groups)), key=lambda g: (g != main, -sum(work[g].values()), g))
    for g in longest_first:
        # A group of views is not worth a stream, and thereby a wait.
        if g == main or not any(work[g].values()):
            best = 0
        else:  # ties go to the lowest number, so streams are taken into use without holes
            best = min(range(streams), key=lambda s: (rival(s, g), s))
        placed[g] = best
        for p, time in work[g].items():
            load[best][p] = load[best].get(p, 0.0) + time
    return placed


def _times(dag: Dag) -> list[float]:
    return [cost.time_us() for cost in dag.costs]
