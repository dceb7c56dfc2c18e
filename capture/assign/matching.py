"""The matching strategy: Nimble's stream assignment.

Kwon et al., "Nimble: Lightweight and Parallel GPU Task Scheduling for Deep Learning", NeurIPS
2020. No two independent operators share a stream, and of all such assignments this one needs the
fewest synchronisations:

1. reduce the graph to its minimum equivalent graph (MEG);
2. find a maximum matching between producers and consumers over the MEG's edges;
3. glue every matched edge: the paths that result are the streams.

The theorem, #synchronisations = |E_MEG| - |M|, is about these paths (`path_cover`). Nimble's code
then merges paths by a second matching: B may follow A where the end of A reaches the beginning of
B. The streams are still chains of the partial order, so no concurrency is lost, there are far
fewer of them, and a synchronisation between two merged paths is gone. A plan therefore has at most
|E_MEG| - |M| waits, and may have fewer.

One stream per feature is far more than a device has hardware queues for. Folding the chains onto
a few streams gives up some concurrency; it makes the number of waits depend on the number of
streams and no longer on the number of features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from recreplay.capture.assign.fold import fold, main_group
from recreplay.capture.assign.order import interleave
from recreplay.capture.assign.placement import Placement
from recreplay.capture.dag import Dag, descendants, members, transitive_reduction


@dataclass(frozen=True, slots=True)
class PathCover:
    """The fewest paths over the minimum equivalent graph that hold every operator once."""

    edges: tuple[tuple[int, int], ...]  # of the minimum equivalent graph
    matched: tuple[tuple[int, int], ...]  # those that the matching glued
    paths: tuple[tuple[int, ...], ...]

    @property
    def syncs(self) -> int:
        """Edges between different paths: what has to be synchronised, before any pruning."""
        return len(self.edges) - len(self.matched)


def by_matching(dag: Dag, streams: int | None) -> Placement:
    chains = merge_paths(dag, path_cover(dag).paths)
    placed = fold(dag, chains, streams, main_group(dag, chains))
    return Placement(placed, interleave(dag, placed, chains))


def path_cover(dag: Dag) -> PathCover:
    edges = transitive_reduction(dag)
    consumers: list[list[int]] = [[] for _ in dag.names]
    for producer, consumer in edges:
        consumers[producer].append(consumer)
    following = maximum_matching(consumers, len(dag.names))
    matched = tuple((u, v) for u, v in enumerate(following) if v is not None)
    return PathCover(edges, matched, tuple(_glue(following)))


def merge_paths(dag: Dag, paths: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """The second matching: join paths end to beginning where the data already orders them."""
    reach = descendants(dag)
    path_at = {path[0]: p for p, path in enumerate(paths)}
    beginnings = sum(1 << node for node in path_at)
    later = [[path_at[node] for node in members(reach[path[-1]] & beginnings)] for path in paths]
    following = maximum_matching(later, len(paths))
    return tuple(tuple(node for p in chain for node in paths[p]) for chain in _glue(following))


def maximum_matching(right_of: Sequence[Sequence[int]], rights: int) -> list[int | None]:
    """The partner of each left vertex in a maximum bipartite matching, by augmenting paths.

    Lists are searched in the order given, so the result is the same in every process. The search
    keeps its own stack: features that interact with their neighbours give augmenting paths as long
    as the number of features, deeper than Python recurses.
    """
    partner: list[int | None] = [None] * len(right_of)
    owner: list[int | None] = [None] * rights
    hopeless: set[int] = set()  # right vertices of failed searches are on no augmenting path
    for root in range(len(right_of)):
        seen: set[int] = set()
        path = [root]  # left vertices, each of which tries to take over from the next
        tries = [iter(right_of[root])]
        taken: list[int] = []
        while path:
            right = next((r for r in tries[-1] if r not in seen and r not in hopeless), None)
            if right is None:
                path.pop()
                tries.pop()
                if taken:
                    taken.pop()
                continue
            seen.add(right)
            taken.append(right)
            rival = owner[right]
            if rival is None:
                for left, goal in zip(path, taken, strict=True):
                    partner[left], owner[goal] = goal, left
                break
            path.append(rival)
            tries.append(iter(right_of[rival]))
        else:
            hopeless |= seen
    return partner


def _glue(following: Sequence[int | None]) -> Iterator[tuple[int, ...]]:
    """The paths that a successor per vertex describes, ordered by their first vertex."""
    inner = set(following)
    for start in range(len(following)):
        if start in inner:
            continue
        path: list[int] = []
        node: int | None = start
        while node is not None:
            path.append(node)
            node = following[node]
        yield tuple(path)
