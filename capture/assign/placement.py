"""What a strategy decides, and how that becomes a plan."""

from __future__ import annotations

from dataclasses import dataclass

from recreplay.capture.dag import Dag
from recreplay.runtime.plan import Plan, plan_from


@dataclass(frozen=True, slots=True)
class Placement:
    """The decisions of a strategy, in the operator numbers of the graph."""

    streams: tuple[int, ...]  # stream of each operator, in program order
    order: tuple[int, ...]  # operators in issue order: one global topological order

    def plan(self, strategy: str, dag: Dag) -> Plan:
        """Renumber to issue order and find the waits."""
        position = {node: place for place, node in enumerate(self.order)}
        return plan_from(
            strategy,
            [dag.names[node] for node in self.order],
            [self.streams[node] for node in self.order],
            [(position[producer], position[consumer]) for producer, consumer in dag.edges],
        )


def single(dag: Dag) -> Placement:
    """Everything on the main stream in program order: the baseline, and one segment when cut."""
    n = len(dag.names)
    return Placement((0,) * n, tuple(range(n)))
