"""What a compiling process tells inductor of the graph that it is given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import fx

from recreplay.capture.compilers.inductor_worker import build_module, concatenation_settings


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
