"""Tables of int8 rows in compiled segments: widths that vectors do not divide, int32 ids, sums and
means, threads, refreshed rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recreplay.capture.ingest import ingest
from recreplay.capture.lowering import find_lowering
from recreplay.capture.precision import Precision
from recreplay.capture.rewrites.lower_tables import lower_tables
from recreplay.capture.specialise import specialise
from recreplay.runtime import Runtime
from recreplay.runtime.aten import BYTE_BAGS
from recreplay.runtime.graph import read_graph
from recreplay.runtime.lowered import INT8

WIDTHS = (5, 16, 33, 48, 70, 130)


class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.bags = nn.ModuleList(
            nn.EmbeddingBag(40, width, mode="mean" if width % 2 else "sum") for width in WIDTHS
        )
        self.one = nn.Embedding(30, 20)

    def forward(self, ids: Tensor, small: Tensor, one: Tensor) -> Tensor:
        found = [bag(small if i % 2 else ids) for i, bag in enumerate(self.bags)]
        return torch.cat([*found, self.one(one).flatten(1)], dim=1)

    def request(self, rows: int) -> dict[str, Tensor]:
        return {
            "ids": torch.randint(0, 40, (rows, 3)),
            "small": torch.randint(0, 40, (rows, 1), dtype=torch.int32),
            "one": torch.randint(0, 30, (rows, 2)),
        }


def test_every_lookup_is_one_function() -> None:
    model = Bags().eval()
    program = specialise(ingest(model, model.request(3)), 4)
    lowering = find_lowering(program, Precision("fp32", "int8"))
    lower_tables(program, lowering.tables, INT8, pool_bytes=True)
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count(BYTE_BAGS) == len(WIDTHS) + 1
    assert not any("embedding" in target for target in targets)


@pytest.mark.inductor
def test_compiled_bags(captured: Callable[..., Path]) -> None:
    model = Bags().eval()
    path = captured(
        model,
        model.request(3),
        buckets=[1, 4, 200],
        compiler="inductor",
        table_precision="int8",
        threads=2,
    )
    with Runtime.load(path) as runtime, torch.no_grad():
        assert BYTE_BAGS in {o.target for o in read_graph(path)[200].captured.operators}
        for _ in range(2):
            for rows in (1, 3, 150, 200):
                request = model.request(rows)
                got = runtime.run({k: v.numpy() for k, v in request.items()})["output"]
                # A byte is half a scale off at most, which is 1/255 of a row's range of about 6.
                np.testing.assert_allclose(got, model(**request).numpy(), atol=0.06)
            model.bags[4].weight[7] = 2.0  # type: ignore[union-attr,index]
            runtime.update_rows("bags.4.weight", [7], model.bags[4].weight[7:8])  # type: ignore[index]
