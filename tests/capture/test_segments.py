"""Cutting plans into segments: complete, ordered, and compiled once per kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recreplay.capture.assign import STRATEGIES, assign
from recreplay.capture.features import to_dag
from recreplay.capture.ingest import Ingested, ingest
from recreplay.capture.program import Program
from recreplay.capture.rewrites.stack_lookups import plan_stacks, stack_lookups
from recreplay.capture.segments import BoundSegment, SegmentCode, cut
from recreplay.capture.specialise import specialise
from recreplay.models import MODELS
from recreplay.runtime import Runtime
from recreplay.runtime.artifact import open_artifact
from recreplay.runtime.plan import Plan, check_plan

Capture = Callable[..., Path]
SMALL: dict[str, dict[str, int]] = {
    "streamrec": {"features": 7, "lookups": 3},
    "mt_wide_deep": {"tasks": 3},
    "dien": {"length": 4},
    "rm_small": {},
}
_exported: dict[str, Ingested] = {}


def exported(name: str) -> Ingested:
    if name not in _exported:
        model = MODELS[name].factory(rows_scale=1e-5, **SMALL[name])
        _exported[name] = ingest(model, model.example_inputs(4))
    return _exported[name]


def segmented(
    model: Ingested, strategy: str, streams: int = 4, stack: bool = True
) -> tuple[Program, list[str], Plan, list[BoundSegment]]:
    program = specialise(model, 3)
    if stack:
        stack_lookups(program, plan_stacks(program))
    dag, nodes = to_dag(program)
    plan, segments = cut(program, assign(dag, strategy, streams), nodes, dag.branches)
    return program, [n.name for n in nodes], plan, segments


@pytest.mark.parametrize("stack", [True, False])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", SMALL)
def test_segments_hold_every_operator_once_in_a_proved_order(
    name: str, strategy: str, stack: bool
) -> None:
    program, operators, plan, segments = segmented(exported(name), strategy, stack=stack)
    check_plan(plan)
    assert [step.name for step in plan.steps] == [segment.name for segment in segments]
    assert sorted(o for segment in segments for o in segment.operators) == sorted(operators)
    assert plan.streams <= 4
    made: dict[str, int] = {}
    reads = set()
    for position, segment in enumerate(segments):
        whole = {f"buffer:{p.name}": f"buffer:{p.buffer}" for p in segment.pieces}
        for part in segment.inputs:
            name_ = whole.get(part, part)  # a piece is made when the buffer that it lies in is
            kind, _, rest = name_.partition(":")
            if kind in ("buffer", "output"):
                assert made[name_] < position
                reads.add((made[name_], position))
            elif kind == "const":
                assert rest in program.constants
            else:
                assert kind in ("input", "staged", "weight")
        for name_ in segment.outputs:
            assert name_ not in made
            made[name_] = position
    assert reads <= set(plan.edges)
    assert {f"output:{o}" for o in program.outputs} <= set(made)


class Turned(nn.Module):
    """What two features make lies in memory column by column, and is viewed where they meet; so
    does an output, which is also viewed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.scale = nn.Parameter(torch.randn(8, 1))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        left, right = x.t() * self.scale, y.t() * self.scale.sin()
        found = (left.t().view(-1) * right.t().view(-1)).view(-1, 8) + left.t()
        last = (x * found).view(-1, 2, 4).transpose(1, 2).sin()
        return {"found": found, "last": last, "flat": last.transpose(1, 2).view(-1, 8)}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_views_of_what_crosses_in_another_order(strategy: str, captured: Capture) -> None:
    model, request = Turned().eval(), {"x": torch.randn(4, 8), "y": torch.randn(4, 8)}
    with Runtime.load(captured(model, request, strategy=strategy, streams=3)) as runtime:
        got = runtime.run(request)
    for name, value in model(**request).items():
        np.testing.assert_allclose(got[name], value.detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_one_stream_is_one_segment(name: str) -> None:
    _, operators, plan, segments = segmented(exported(name), "single")
    assert len(segments) == len(plan.steps) == 1
    assert list(segments[0].operators) == operators
    assert all(not o.startswith("buffer:") for o in segments[0].outputs)


@pytest.mark.parametrize("strategy", ["feature", "matching", "greedy"])
def test_many_streams_are_used_where_there_is_work(strategy: str) -> None:
    _, _, plan, segments = segmented(exported("streamrec"), strategy, stack=False)
    assert plan.streams == 4
    assert len(segments) >= 7


class Features(nn.Module):
    """Branches of lookup, pooling and a layer, with the widths and rows given."""

    def __init__(self, rows: list[int], dims: list[int]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tables = nn.ModuleList(nn.Embedding(n, d) for n, d in zip(rows, dims, strict=True))
        self.layers = nn.ModuleList(nn.Linear(d, d) for d in dims)
        self.top = nn.Linear(sum(dims), 1)

    def forward(self, ids: list[Tensor]) -> Tensor:
        parts = [
            layer(table(i).sum(1)).relu()
            for i, table, layer in zip(ids, self.tables, self.layers, strict=True)
        ]
        return self.top(torch.cat(parts, dim=1))


def example(count: int) -> dict[str, Tensor]:
    return {f"ids_{i}": torch.zeros(4, 3, dtype=torch.int64) for i in range(count)}


@pytest.mark.parametrize("streams", [2, 5])
def test_branches_of_one_width_share_a_package_whatever_their_rows(
    captured: Capture, streams: int
) -> None:
    rows, dims = [9, 20, 31, 9, 50, 7], [4, 8, 4, 8, 16, 4]
    path = captured(
        Features(rows, dims),
        example(6),
        buckets=[3],
        strategy="feature",
        streams=streams,
        rewrites=(),
    )
    manifest = open_artifact(path).manifest
    assert len(manifest.packages) == 3 + 1  # one per width, and the trunk
    assert len(manifest.buckets[0].segments) == 6 + 1
    by_package: dict[str, list[str]] = {}
    for segment in manifest.buckets[0].segments:
        by_package.setdefault(segment.package, []).append(segment.name.partition(":")[2])
    groups = sorted(sorted(names) for names in by_package.values())
    assert groups == [["ids_0", "ids_2", "ids_5"], ["ids_1", "ids_3"], ["ids_4"], ["trunk"]]
    assert len(list((path / "segments").iterdir())) == 4


def test_branches_after_a_stacked_lookup_stay_branches_and_share_packages(
    captured: Capture,
) -> None:
    model = MODELS["streamrec"].factory(features=7, lookups=3, dense=0, rows_scale=1e-3)
    path = captured(model, buckets=[3], strategy="feature", streams=4, rewrites=("stack_lookups",))
    manifest = open_artifact(path).manifest
    assert manifest.buckets[0].plan.streams == 4
    branches = [s.name.partition(":")[2] for s in manifest.buckets[0].segments]
    assert set(branches) == {"trunk", *(f"ids_{i}" for i in range(7))}
    by_width = {s.package for s in manifest.buckets[0].segments if "ids_" in s.name}
    assert len(by_width) == 3
    whole = {slot.name: slot for slot in manifest.buckets[0].buffers}
    shares = [
        s for seg in manifest.buckets[0].segments for s in seg.inputs if "slice" in s or "view" in s
    ]
    assert len(shares) == 7
    assert all(whole[name.removeprefix("buffer:")].dtype == "float32" for name in shares)


def test_streamrec_of_three_widths_has_four_packages(captured: Capture) -> None:
    model = MODELS["streamrec"].factory(features=7, lookups=3, dense=0, rows_scale=1e-3)
    path = captured(model, buckets=[3], strategy="feature", rewrites=())
    assert len(open_artifact(path).manifest.packages) == 4


def test_code_that_differs_has_another_key() -> None:
    _, _, _, narrow = segmented(
        ingest(Features([9, 9], [4, 4]).eval(), example(2)), "feature", stack=False
    )
    _, _, _, wide = segmented(
        ingest(Features([9, 9], [4, 8]).eval(), example(2)), "feature", stack=False
    )
    keys = {s.name.partition(":")[2]: s.code.key() for s in narrow}
    others = {s.name.partition(":")[2]: s.code.key() for s in wide}
    assert keys["ids_0"] == keys["ids_1"] == others["ids_0"] != others["ids_1"]


def test_a_table_that_is_also_multiplied_keeps_its_rows_in_the_key() -> None:
    class Tied(nn.Module):
        def __init__(self, rows: int) -> None:
            super().__init__()
            self.table = nn.Embedding(rows, 4)

        def forward(self, ids: Tensor) -> Tensor:
            return self.table(ids) @ self.table.weight.t() @ self.table.weight

    keys = []
    for rows in (5, 6):
        model = ingest(Tied(rows).eval(), {"ids": torch.zeros(4, dtype=torch.int64)})
        _, _, _, (segment,) = segmented(model, "single")
        assert segment.code.tables == ()
        keys.append(segment.code.key())
    assert keys[0] != keys[1]


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(sorted(SMALL)),
    strategy=st.sampled_from(STRATEGIES),
    streams=st.integers(1, 9),
)
def test_segment_code_survives_json(name: str, strategy: str, streams: int) -> None:
    _, _, plan, segments = segmented(exported(name), strategy, streams)
    check_plan(plan)
    for segment in segments:
        again = SegmentCode.from_json(segment.code.to_json())
        assert again == segment.code
        assert again.key() == segment.code.key()
