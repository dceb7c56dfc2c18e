"""Which segments go to TensorRT. Engines need a GPU; what would be one is decided anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recreplay.capture import assembly, capture, pipeline
from recreplay.capture.assign import STRATEGIES, assign
from recreplay.capture.compilers.eager import EagerCompiler
from recreplay.capture.compilers.tensorrt import dense_module
from recreplay.capture.dense import DENSE, PRODUCTS, chosen_segments, dense_nodes, is_dense
from recreplay.capture.features import to_dag
from recreplay.capture.ingest import ingest
from recreplay.capture.rewrites.stack_lookups import plan_stacks, stack_lookups
from recreplay.capture.segments import BoundSegment, cut
from recreplay.capture.specialise import specialise
from recreplay.models import dlrm, streamrec
from recreplay.models.base import Ranker
from recreplay.runtime import Runtime
from recreplay.runtime.artifact import open_artifact
from recreplay.runtime.errors import CompilerError
from recreplay.runtime.plan import check_plan


def small_dlrm() -> Ranker:
    return dlrm(tables=4, rows=50, lookups=3, dim=8, dense=5, bottom=(8,), top=(16, 1))


def segments_of(model: Ranker, strategy: str) -> list[BoundSegment]:
    ingested = ingest(model, model.example_inputs(4))
    program = specialise(ingested, 8)
    stack_lookups(program, plan_stacks(program))
    dag, nodes = to_dag(program)
    operators = assign(dag, strategy, 4)  # type: ignore[arg-type]
    plan, segments = cut(program, operators, nodes, dag.branches, dense_nodes(operators, nodes))
    check_plan(plan)
    return segments


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_engines_take_the_dense_layers_and_nothing_else(strategy: str) -> None:
    segments = segments_of(small_dlrm(), strategy)
    engines, rest = chosen_segments({s.name: s.code for s in segments})
    by_name = {s.name: s for s in segments}
    in_engines = {op.target for name in engines for op in by_name[name].code.operators}
    left = {op.target for name in rest for op in by_name[name].code.operators}
    assert in_engines & PRODUCTS
    assert not left & PRODUCTS
    assert "aten.embedding_bag.padding_idx" in left
    assert all(is_dense(by_name[name].code) for name in engines)
    assert {t.dtype for name in engines for t in by_name[name].code.inputs} == {"float32"}


def test_one_stream_of_a_dlrm_is_bottom_lookups_and_top() -> None:
    segments = segments_of(small_dlrm(), "single")
    assert [is_dense(s.code) for s in segments] == [True, False, True]
    assert [op.target for op in segments[0].code.operators] == [
        "aten.linear.default",
        "aten.relu.default",
    ]


def test_what_has_no_product_is_not_cut_off() -> None:
    class Summed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(20, 4)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.table(ids).sum(1).relu()

    ingested = ingest(Summed().eval(), {"ids": torch.zeros(2, 3, dtype=torch.int64)})
    program = specialise(ingested, 4)
    dag, nodes = to_dag(program)
    plan = assign(dag, "single", 1)
    assert {n.target for n in nodes} & {torch.ops.aten.relu.default}
    assert dense_nodes(plan, nodes) == frozenset()
    _, segments = cut(program, plan, nodes, dag.branches, dense_nodes(plan, nodes))
    assert len(segments) == 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_plan_cut_for_engines_computes_the_same(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "tensorrt_problem", lambda device: None)
    monkeypatch.setattr(assembly, "get_compiler", lambda *_: EagerCompiler())
    model = streamrec(features=4, lookups=3, dims=(8, 16), dense=0, rows_scale=1e-3)
    out = tmp_path / "m.rr"
    capture(model, out=out, buckets=[2, 8], strategy=strategy, compiler="tensorrt")
    capture(model, out=tmp_path / "one.rr", buckets=[2, 8], strategy=strategy, compiler="eager")
    request = model.example_inputs(5)
    with Runtime.load(out) as runtime, Runtime.load(tmp_path / "one.rr") as whole:
        assert torch.equal(
            torch.from_numpy(runtime.run(request)["output"]),
            torch.from_numpy(whole.run(request)["output"]),
        )
    counts = [
        len(open_artifact(tmp_path / name).manifest.buckets[1].segments)
        for name in ("m.rr", "one.rr")
    ]
    # Several streams are cut between lookup and branch anyway.
    assert counts[0] > counts[1] if strategy == "single" else counts[0] >= counts[1]


@pytest.mark.parametrize(("half", "tolerance"), [(False, 0.0), (True, 1e-2)])
def test_what_is_given_to_tensorrt_computes_the_segment(half: bool, tolerance: float) -> None:
    code = next(s.code for s in segments_of(small_dlrm(), "single") if is_dense(s.code))
    cpu = torch.device("cpu")
    inputs = [torch.rand(t.shape) for t in code.inputs]
    exported = torch.export.export(dense_module(code, cpu, half), tuple(inputs))
    (got,) = exported.module()(*inputs)
    wanted = torch.relu(torch.nn.functional.linear(*inputs))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
    halves = {str(n.target) for n in exported.graph.nodes}
    assert ("aten.to.dtype" in halves or "aten._to_copy.default" in halves) == half


def test_the_operators_of_engines_are_operators_of_torch() -> None:
    from recreplay.runtime.aten import resolve

    for target in DENSE:
        resolve(target)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-tf32", "tensorrt-fp16"])
def test_without_tensorrt_capture_names_the_extra(name: str, tmp_path: Path) -> None:
    try:
        import torch_tensorrt  # noqa: F401
    except ImportError:
        message = (
            rf"compiler '{name}' cannot be used: torch_tensorrt is not installed: pip install "
            r"'recreplay\[tensorrt\]'"
        )
    else:
        message = r"engines run on CUDA; the device is 'cpu'"
    with pytest.raises(CompilerError, match=message):
        capture(small_dlrm(), out=tmp_path / "m.rr", buckets=[2], compiler=name)
    assert not list(tmp_path.iterdir())
