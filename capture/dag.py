"""The graph of one bucket as the strategies see it: operators, data edges, costs and branches.

Sets of operators are Python integers used as bit sets (bit i is operator i): the closure over the
1,600 operators of a 400-feature model then takes a millisecond.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Roofline:
    """What an operator costs at best: a fixed launch plus the slower of memory and arithmetic."""

    bytes_per_us: float
    flops_per_us: float
    launch_us: float


# Data-sheet figures of an A100 40 GB (1,555 GB/s, 19.5 TFLOP/s in float32), and the order of
# magnitude of one kernel node in a replayed graph. Strategies use ratios of times only, and the
# operators of ranking models are short enough that the launch dominates most of those.
A100 = Roofline(bytes_per_us=1.555e6, flops_per_us=19.5e6, launch_us=2.0)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one operator moves and computes."""

    bytes: int
    flops: int

    def __post_init__(self) -> None:
        if self.bytes < 0 or self.flops < 0:
            raise ValueError(f"a cost is not negative: {self.bytes} bytes, {self.flops} flops")

    def time_us(self, machine: Roofline = A100) -> float:
        """An estimate for comparing operators, not for predicting latencies.

        An operator that neither moves nor computes anything is a view and launches nothing.
        """
        if not self.bytes and not self.flops:
            return 0.0
        memory = self.bytes / machine.bytes_per_us
        arithmetic = self.flops / machine.flops_per_us
        return machine.launch_us + max(memory, arithmetic)

    def compute_bound(self, machine: Roofline = A100) -> bool:
        """Whether the arithmetic intensity lies above the machine's balance."""
        return self.flops / machine.flops_per_us > self.bytes / machine.bytes_per_us


@dataclass(frozen=True, slots=True)
class Dag:
    names: tuple[str, ...]  # in a topological order: the program's own
    edges: tuple[tuple[int, int], ...]  # (producer, consumer), indices into names
    costs: tuple[Cost, ...]
    branches: tuple[str | None, ...]  # feature that an operator belongs to; None is the trunk

    def __post_init__(self) -> None:
        n = len(self.names)
        if n == 0:
            raise ValueError("a graph needs at least one operator")
        if len(self.costs) != n:
            raise ValueError(f"{n} operators but {len(self.costs)} costs")
        if len(self.branches) != n:
            raise ValueError(f"{n} operators but {len(self.branches)} branches")
        seen: set[str] = set()
        for name in self.names:
            if name in seen:
                raise ValueError(f"two operators are named {name!r}")
            seen.add(name)
        for producer, consumer in self.edges:
            if not (0 <= producer < n and 0 <= consumer < n):
                raise ValueError(f"edge ({producer}, {consumer}) points outside the {n} operators")
            if producer >= consumer:
                raise ValueError(
                    f"edge {self.names[producer]!r} -> {self.names[consumer]!r} runs against the "
                    "program order"
                )
        if len(set(self.edges)) != len(self.edges):
            raise ValueError("an edge is listed twice")


def predecessors(dag: Dag) -> list[list[int]]:
    """Producers of each operator, in program order."""
    return _adjacency(len(dag.names), ((consumer, producer) for producer, consumer in dag.edges))


def successors(dag: Dag) -> list[list[int]]:
    """Consumers of each operator, in program order."""
    return _adjacency(len(dag.names), dag.edges)


def descendants(dag: Dag) -> list[int]:
    """The operators that each operator reaches, as bit sets; an operator does not reach itself."""
    following = successors(dag)
    reach = [0] * len(dag.names)
    for node in reversed(range(len(dag.names))):
        for consumer in following[node]:
            reach[node] |= reach[consumer] | 1 << consumer
    return reach


def transitive_reduction(dag: Dag) -> tuple[tuple[int, int], ...]:
    """The minimum equivalent graph: the edges that no longer path implies. Unique for a DAG."""
    following = successors(dag)
    reach = descendants(dag)
    kept = []
    for node, consumers in enumerate(following):
        covered = 0
        # A path to a consumer passes only through consumers earlier in program order.
        for consumer in consumers:
            if not covered >> consumer & 1:
                kept.append((node, consumer))
                covered |= reach[consumer]
    return tuple(kept)


def members(bits: int) -> Iterator[int]:
    """The operators in a bit set, ascending."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


def _adjacency(n: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    lists: list[list[int]] = [[] for _ in range(n)]
    for tail, head in sorted(pairs):
        lists[tail].append(head)
    return lists
