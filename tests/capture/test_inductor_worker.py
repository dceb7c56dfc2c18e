"""What a compiling process tells inductor of the graph that it is given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import fx

from recreplay.capture.compilers.inductor_worker import build_module, concatenation_settings
from recreplay.capture.compilers.vector_masks import keep_vectors


@pytest.mark.parametrize(("parts", "once"), [(0, False), (8, False), (9, True)])
def test_parts_of_many_are_computed_once(parts: int, once: bool) -> None:
    graph = fx.Graph()
    given = [graph.placeholder(f"x{i}") for i in range(max(parts, 1))]
    if parts:
        graph.call_function(torch.ops.aten.cat.default, (given, 1))
    settings = concatenation_settings(graph)
    assert settings["max_pointwise_cat_inputs"] == 64
    assert ("realize_reads_threshold" in settings) == once
    with torch._inductor.config.patch(settings):  # all are names that inductor knows
        pass


class Codes(torch.nn.Module):
    """How far the codes of items are from each other, as SimHash has them, in bits."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        left, right = (x > 0).to(torch.int8), (y > 0).to(torch.uint8)
        near = left.unsqueeze(1) != right
        return near.sum(-1), near.sum([0, 1], keepdim=True), near.sum(0, dtype=torch.float32)


def test_masks_and_bytes_are_float32_on_the_way() -> None:
    given = torch.randn(6, 9), torch.randn(5, 9)
    exported = torch.export.export(Codes(), given)
    keep_vectors(exported.graph)
    copies = exported.graph.find_nodes(op="call_function", target=torch.ops.aten._to_copy.default)
    kinds = [node.meta["val"].dtype for node in copies]
    # Two masks and the bytes made of them, and twice the mask that is added up to whole numbers.
    assert kinds.count(torch.float32) == 6
    exported.graph_module.recompile()
    for got, want in zip(exported.module()(*given), Codes()(*given), strict=True):
        assert got.dtype == want.dtype
        assert torch.equal(got, want)


def test_more_than_float32_counts_is_added_up_as_it_is() -> None:
    with torch.device("meta"):
        given = torch.empty(3, (1 << 24) + 1), torch.empty(1, (1 << 24) + 1)
    exported = torch.export.export(Codes(), given)
    keep_vectors(exported.graph)
    sums = exported.graph.find_nodes(op="call_function", target=torch.ops.aten.sum.dim_IntList)
    assert [node.args[0].meta["val"].dtype == torch.bool for node in sums] == [True, False, True]


def looked_up(rows: int, dim: int, *before: list[Any]) -> dict[str, Any]:
    """Code of a lookup of ids, or of what the operators before it make of them."""
    ids = {"value": before[-1][0] if before else "i1"}
    return {
        "inputs": [["float32", [rows, dim]], ["int64", [8]], ["bool", [8]], ["float32", [200]]],
        "tables": [0],
        "operators": [*before, ["e", "aten.embedding.default", [{"value": "i0"}, ids], {}]],
        "results": ["e"],
        "outputs": [["float32", [8, dim]]],
    }


IDS, MASK, BOUNDARIES = {"value": "i1"}, {"value": "i2"}, {"value": "i3"}


@pytest.mark.parametrize("rows", [300_000, 10**9])
@pytest.mark.parametrize(
    "made",
    [
        ["o", "aten.add.Tensor", [IDS, 200_000], {}],
        ["o", "aten.rsub.Scalar", [IDS, 200_000], {}],
        ["o", "aten.clamp.default", [IDS, 200_000], {}],
        ["o", "aten.where.ScalarOther", [MASK, IDS, 200_000], {}],
        ["o", "aten.full_like.default", [IDS, 200_000], {}],
    ],
)
def test_examples_are_valid_ids_where_numbers_of_a_model_become_ids(
    made: list[Any], rows: int
) -> None:
    """As where users and items share a table. Inductor runs what it compiles for CUDA on examples,
    where an id in no row ends the context, and with it the capture."""
    module = build_module(looked_up(rows, 4, made), "meta")  # as for CUDA, without memory
    module.graph(*(torch.zeros(e.shape, dtype=e.dtype) for e in module.examples))
    assert len(module.examples[0]) <= 300_000


def test_a_small_table_has_all_of_its_rows() -> None:
    """Numbers that are sorted into as many buckets as there are rows reach each of them, whatever
    the example is. On a CPU nothing is run."""
    made = ["o", "aten.bucketize.Tensor", [MASK, BOUNDARIES], {}]
    for device, rows in (("meta", 201), ("cpu", 64)):
        module = build_module(looked_up(201, 16, made), device)
        assert len(module.examples[0]) == rows


@pytest.mark.parametrize(("rows", "dim", "stand_in"), [(1, 4, 64), (10**9, 1 << 16, 64)])
def test_a_stand_in_has_some_rows(rows: int, dim: int, stand_in: int) -> None:
    """One row would be compiled as a constant, and the code serves tables of any number of rows."""
    assert len(build_module(looked_up(rows, dim), "meta").examples[0]) == stand_in
