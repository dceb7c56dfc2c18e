"""The greedy strategy: Opara's stream allocation and launch order.

Chen et al., "Opara: Exploiting Operator Parallelism for Expediting DNN Inference on GPUs", IEEE
Transactions on Computers 74(1), 2025. One pass in topological order: an operator takes the stream
of its first producer that has not yet handed its stream to another consumer, else a new stream.
Linear in the size of the graph; the streams are paths of it, so that no concurrency is lost, but
there are more of them than Nimble's, and more synchronisations. Unlike Opara, the edges that a
longer path implies are left out first, so that they do not take a stream from the consumer that
really comes next.
"""

from __future__ import annotations

from recreplay.capture.assign.fold import fold, main_group
from recreplay.capture.assign.order import alternate
from recreplay.capture.assign.placement import Placement
from recreplay.capture.dag import Dag, transitive_reduction


def greedily(dag: Dag, streams: int | None) -> Placement:
    paths = greedy_paths(dag)
    placed = fold(dag, paths, streams, main_group(dag, paths))
    return Placement(placed, alternate(dag))


def greedy_paths(dag: Dag) -> tuple[tuple[int, ...], ...]:
    """Opara's streams before folding, ordered by their first operator."""
    producers: list[list[int]] = [[] for _ in dag.names]
    for producer, consumer in transitive_reduction(dag):
        producers[consumer].append(producer)
    paths: list[list[int]] = []
    path_of: list[list[int]] = []  # the path that holds each operator
    for node, candidates in enumerate(producers):
        # A path that still ends in the producer has not been claimed.
        free = (path_of[p] for p in candidates if path_of[p][-1] == p)
        path = next(free, None)
        if path is None:
            paths.append(path := [])
        path.append(node)
        path_of.append(path)
    return tuple(map(tuple, paths))
