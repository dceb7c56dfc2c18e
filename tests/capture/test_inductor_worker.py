"""What a compiling process tells inductor of the graph that it is given."""

from __future__ import annotations

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


@pytest.mark.parametrize(("rows", "stand_in"), [(3000, 1064), (1001, 1001), (10**9, 1064)])
def test_examples_are_valid_ids_where_a_model_adds_numbers_to_them(
    rows: int, stand_in: int
) -> None:
    """As those of users and items do that share a table. Inductor runs what it compiles for CUDA on
    examples, where an id in no row ends the context, and with it the capture."""
    ids, table = {"value": "i1"}, {"value": "i0"}
    code = {
        "inputs": [["float32", [rows, 4]], ["int64", [8]]],
        "tables": [0],
        "operators": [
            ["o0", "aten.add.Tensor", [ids, 1000], {}],
            ["o1", "aten.embedding.default", [table, {"value": "o0"}], {}],
        ],
        "results": ["o1"],
        "outputs": [["float32", [8, 4]]],
    }
    module = build_module(code, "cpu")
    assert module.examples[0].shape == (stand_in, 4)
    module.graph(*module.examples)


@pytest.mark.parametrize("rows", [1, 64, 5000])
def test_tables_have_a_stand_in_of_one_size(rows: int) -> None:
    """One row would be compiled as a constant, and the code serves tables of any number of rows."""
    looked_up = ["o0", "aten.embedding.default", [{"value": "i0"}, {"value": "i1"}], {}]
    code = {
        "inputs": [["float32", [rows, 4]], ["int64", [8]]],
        "tables": [0],
        "operators": [looked_up],
        "results": ["o0"],
        "outputs": [["float32", [8, 4]]],
    }
    assert build_module(code, "cpu").examples[0].shape == (64, 4)
