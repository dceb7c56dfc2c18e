"""The operators behind each bucket's segments, for people: what the page and `inspect` show.

Capture writes it beside the manifest. Nothing is replayed from it: an artifact without this file
runs as well as one with it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recreplay.runtime.errors import ArtifactCorruptError
from recreplay.runtime.plan import Plan, Step

GRAPH = "graph.json"
_COLUMNS = ("name", "target", "module", "branch", "outputs", "bytes", "flops", "modelled_us")


@dataclass(frozen=True, slots=True)
class OperatorInfo:
    """One launching operator of a bucket."""

    name: str
    target: str  # as ATen calls it
    module: str  # path of the module that it comes from; empty where a rewrite made it
    branch: str | None  # the feature that it belongs to; None is the trunk
    outputs: tuple[tuple[str, tuple[int, ...]], ...]  # dtype and shape of each
    bytes: int
    flops: int
    modelled_us: float  # the cost model's estimate, which is for comparing operators


@dataclass(frozen=True, slots=True)
class OperatorGraph:
    """Operators in program order, data edges between them, and plans over them."""

    operators: tuple[OperatorInfo, ...]
    edges: tuple[tuple[int, int], ...]
    plans: tuple[Plan, ...]  # one a strategy, the captured one first

    def to_json(self) -> dict[str, Any]:
        index = {op.name: i for i, op in enumerate(self.operators)}
        return {
            "columns": list(_COLUMNS),
            "operators": [[_plain(getattr(op, c)) for c in _COLUMNS] for op in self.operators],
            "edges": [list(edge) for edge in self.edges],
            "plans": [
                {
                    "strategy": plan.strategy,
                    "order": [index[step.name] for step in plan.steps],
                    "streams": [step.stream for step in plan.steps],
                    "waits": [list(step.waits) for step in plan.steps],
                }
                for plan in self.plans
            ],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> OperatorGraph:
        """Inverse of `to_json`; raises KeyError, IndexError, TypeError or ValueError."""
        rows = [dict(zip(data["columns"], row, strict=True)) for row in data["operators"]]
        operators = tuple(
            OperatorInfo(**{**row, "outputs": tuple((d, tuple(s)) for d, s in row["outputs"])})
            for row in rows
        )
        edges = tuple((int(a), int(b)) for a, b in data["edges"])
        return cls(operators, edges, tuple(_plan(p, operators, edges) for p in data["plans"]))


@dataclass(frozen=True, slots=True)
class BucketGraph:
    """The operators of one bucket, as captured and as they were before any rewrite."""

    size: int
    captured: OperatorGraph
    before: OperatorGraph | None  # None where rewrites changed nothing


def write_graph(folder: Path, graphs: Sequence[BucketGraph]) -> None:
    """Write the file; sealing the artifact takes its digest."""
    data = {
        "buckets": [
            {
                "size": g.size,
                "captured": g.captured.to_json(),
                "before": None if g.before is None else g.before.to_json(),
            }
            for g in graphs
        ]
    }
    (folder / GRAPH).write_text(json.dumps(data, separators=(",", ":")))


def read_graph(folder: Path) -> dict[int, BucketGraph]:
    """Graphs by bucket; empty if the artifact has none."""
    path = folder / GRAPH
    if not path.is_file():
        return {}
    try:
        return {
            item["size"]: BucketGraph(
                item["size"],
                OperatorGraph.from_json(item["captured"]),
                None if item["before"] is None else OperatorGraph.from_json(item["before"]),
            )
            for item in json.loads(path.read_text())["buckets"]
        }
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ArtifactCorruptError(f"{path} is not a graph of RecReplay: {error!r}") from error


def _plan(
    data: dict[str, Any],
    operators: Sequence[OperatorInfo],
    edges: Sequence[tuple[int, int]],
) -> Plan:
    position = {op: at for at, op in enumerate(data["order"])}
    steps = zip(data["order"], data["streams"], data["waits"], strict=True)
    return Plan(
        data["strategy"],
        tuple(Step(operators[op].name, stream, tuple(waits)) for op, stream, waits in steps),
        tuple(sorted((position[a], position[b]) for a, b in edges)),
    )


def _plain(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value
