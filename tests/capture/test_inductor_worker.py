"""What a compiling process tells inductor of the graph that it is given."""

from __future__ import annotations

import pytest
import torch
import torch._inductor.config
from torch import fx

from recreplay.capture.compilers.inductor_worker import concatenation_settings


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
