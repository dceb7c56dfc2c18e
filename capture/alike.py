"""Which operators of a graph are alike: the same work on other weights, as branches often are.

Two operators are alike if their targets, shapes and arguments are, from the bottom up. A weight is
known by its shape alone, and a cut along the first dimension by what it is cut from: one feature's
share of a stacked lookup. Operators that are alike are equally deep, so none can depend on another
one, and running each set of them at once never makes a cycle.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable
from dataclasses import dataclass

import torch
from torch import fx
from torch.utils import _pytree as pytree

from recreplay.capture.freeze import freeze
from recreplay.capture.views import is_view

aten = torch.ops.aten
# Tables are stacked with their ids shifted, not read side by side.
TABLE_READS = {
    aten.embedding.default,
    aten.embedding_bag.padding_idx,
    aten.index.Tensor,
    aten.index_select.default,
}


@dataclass(frozen=True)
class Weights:
    """An argument that is another weight in each lane."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Lanes:
    """An argument that is, in lane k, the member `picks[k]` of another group."""

    group: Group
    picks: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Group:
    """Operators that are alike, one a lane, and their tensor arguments in the order of `leaves`.

    An argument that is a node is the same in all lanes.
    """

    members: tuple[fx.Node, ...]
    arguments: tuple[fx.Node | Weights | Lanes, ...]

    @property
    def is_cut(self) -> bool:
        """Whether the members are pieces of one tensor."""
        return all(isinstance(a, fx.Node) for a in self.arguments)


def leaves(node: fx.Node) -> list[fx.Node]:
    """The nodes among the arguments of `node`, in order, repeats included."""
    return [a for a in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(a, fx.Node)]


def find_groups(
    graph: fx.Graph,
    weight_sets: Collection[tuple[str, ...]] | None = None,
    elsewhere: Collection[str] = (),
) -> list[Group]:
    """The groups that share work, each after those whose members it reads.

    `weight_sets`: the sets of weights that lanes may read together; None for any, as long as no
    weight is in two or lies `elsewhere`, since each is stored once.
    """
    found: list[Group] = []
    place: dict[fx.Node, tuple[Group, int]] = {}
    owner: dict[str, tuple[str, ...]] = dict.fromkeys(elsewhere, ())
    for members in _alike(graph):
        for part in _lanes(members, place):
            arguments = _arguments(part, place)
            if len(part) < 2 or arguments is None:
                continue
            sets = [a.names for a in arguments if isinstance(a, Weights)]
            if not all(_may_stack(names, owner, weight_sets) for names in sets):
                continue
            owner |= {name: names for names in sets for name in names}
            group = Group(tuple(part), arguments)
            place |= {member: (group, lane) for lane, member in enumerate(part)}
            found.append(group)
    return _with_work(found)


def _may_stack(
    names: tuple[str, ...],
    owner: dict[str, tuple[str, ...]],
    weight_sets: Collection[tuple[str, ...]] | None,
) -> bool:
    if weight_sets is not None and names not in weight_sets:
        return False
    return len(set(names)) == len(names) and all(owner.get(n, names) == names for n in names)


def _alike(graph: fx.Graph) -> list[list[fx.Node]]:
    """Classes of two or more operators that are alike, in the order of their first members."""
    numbers: dict[Hashable, int] = {}
    kind: dict[fx.Node, int] = {}
    depth: dict[fx.Node, int] = {}
    classes: dict[int, list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        kind[node] = numbers.setdefault(_signature(node, kind), len(numbers))
        depth[node] = 1 + max((depth[n] for n in node.all_input_nodes), default=0)
        if node.op == "call_function":
            classes[kind[node]].append(node)
    several = [members for members in classes.values() if len(members) > 1]
    return sorted(several, key=lambda members: depth[members[0]])


def _signature(node: fx.Node, kind: dict[fx.Node, int]) -> Hashable:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or node.target in TABLE_READS:
        return node
    seen = (str(value.dtype), tuple(value.shape))
    if node.op == "placeholder":
        is_weight = str(node.target).startswith("weight:") and value.ndim > 0
        return ("weight", seen) if is_weight else node
    if _is_cut(node):
        return ("cut", node.target, node.args[0], seen)

    arguments = freeze((node.args, node.kwargs), lambda n: ("node", kind[n]))
    return (node.target, arguments, seen)


def _is_cut(node: fx.Node) -> bool:
    """A piece along the first dimension: `x[a:b]` or `x[a]`."""
    if node.target is aten.slice.Tensor and len(node.args) != 4:
        return False
    return node.target in (aten.slice.Tensor, aten.select.int) and 0 in node.args[1:2]


def _lanes(members: list[fx.Node], place: dict[fx.Node, tuple[Group, int]]) -> list[list[fx.Node]]:
    """Members that read lanes of the same groups, in the order of those lanes.

    Two members that read one lane (a query and a key of the same items) go to different parts.
    """
    if _is_cut(members[0]):
        return [sorted(members, key=lambda m: int(m.args[2]))]  # type: ignore[arg-type]
    parts: dict[Hashable, list[tuple[int, fx.Node]]] = defaultdict(list)
    times: dict[Hashable, int] = defaultdict(int)
    for member in members:
        read = [place.get(n, (None, 0)) for n in leaves(member)]
        groups = tuple(group for group, _ in read)
        lane = next((lane for group, lane in read if group is not None), None)
        if lane is None:
            parts[groups].append((len(parts[groups]), member))
            continue
        turn = times[groups, lane]
        times[groups, lane] += 1
        parts[groups, turn].append((lane, member))
    return [[member for _, member in sorted(part, key=lambda p: p[0])] for part in parts.values()]


def _arguments(
    part: list[fx.Node], place: dict[fx.Node, tuple[Group, int]]
) -> tuple[fx.Node | Weights | Lanes, ...] | None:
    """What the lanes read, argument by argument; None if they cannot read it side by side."""
    found: list[fx.Node | Weights | Lanes] = []
    for nodes in zip(*map(leaves, part), strict=True):
        if len(set(nodes)) == 1:
            found.append(nodes[0])
        elif all(str(n.target).startswith("weight:") for n in nodes):
            found.append(Weights(tuple(str(n.target).removeprefix("weight:") for n in nodes)))
        elif all(n in place for n in nodes) and len({place[n][0] for n in nodes}) == 1:
            found.append(Lanes(place[nodes[0]][0], tuple(place[n][1] for n in nodes)))
        else:
            return None
    # The same value twice, such as ids that two stacks of tables flatten each for itself.
    if not _is_cut(part[0]) and all(isinstance(a, fx.Node) for a in found):
        return None
    return tuple(found)


def _with_work(groups: list[Group]) -> list[Group]:
    """Without groups of views that no stacked operator reads."""
    needed: set[Group] = set()
    for group in reversed(groups):
        if group in needed or (not group.is_cut and not is_view(group.members[0])):
            needed.add(group)
            needed |= {a.group for a in group.arguments if isinstance(a, Lanes)}
    return [group for group in groups if group in needed]
