"""The best columns of rows by a function of ours: which calls, and that they are torch's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recreplay.capture.ingest import ingest
from recreplay.capture.rewrites.top_k import top_k
from recreplay.capture.specialise import specialise
from recreplay.runtime import Runtime
from recreplay.runtime.aten import TOP_K
from recreplay.runtime.graph import read_graph
from recreplay.runtime.top_k import top_k_operator

NAN, INF = float("nan"), float("inf")


class Run(nn.Module):
    def __init__(self, run: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(x)


@pytest.mark.parametrize(
    ("run", "count"),
    [
        (lambda x: x.topk(2), 1),
        (lambda x: x.topk(2, dim=1, largest=False, sorted=False).indices, 1),
        (lambda x: x.view(-1, 2, 3).topk(2).values, 1),
        (lambda x: x.view(-1, 2, 3).topk(1, dim=1).values, 0),
        (lambda x: x.double().topk(2).indices, 0),
        (lambda x: x.long().topk(2).indices, 0),
        (lambda x: x.argsort(descending=True)[:, :1], 1),
        (lambda x: x.repeat(1, 2).sort(dim=1, stable=True).indices[..., :3], 1),
        (lambda x: torch.cat([r[:, :1] for r in x.sort(-1, descending=True)], 1), 1),
        (lambda x: x.argsort()[:, :1] + x.argsort()[:, 1:2], 0),
        (lambda x: x.sort().values[:, :2], 0),
        (lambda x: x.sort().values[:, :1] + x.sort().values, 0),
        (lambda x: x.view(-1, 2, 3).repeat(1, 4, 1).sort(1).values[:, :1], 0),
        (lambda x: x.long().sort(1).values[:, :1], 0),
    ],
)
def test_which_calls(run: Callable[[Tensor], Any], count: int) -> None:
    model = Run(run)
    program = specialise(ingest(model.eval(), {"x": torch.randn(4, 6)}), 4)
    top_k(program)
    assert [str(n.target) for n in program.graph.nodes].count(TOP_K) == count


@pytest.mark.parametrize("largest", [True, False])
def test_equal_values_come_in_their_order(largest: bool) -> None:
    x = torch.tensor([[1.0, NAN, 1.0, -INF, INF, NAN, 0.0]])
    want = [1, 5, 4, 0, 2, 6, 3] if largest else [3, 6, 0, 2, 4, 1, 5]
    assert top_k_operator()(x, 7, largest).tolist() == [want]


class Best(nn.Module):
    """Of rows of three lengths, in both orders."""

    def forward(self, short: Tensor, long: Tensor, deep: Tensor) -> dict[str, Tensor]:
        found = {}
        for name, x, k, largest in (
            ("all", short, 37, True),
            ("one", long, 1, True),
            ("many", long, 100, True),
            ("least", long, 20, False),
            ("half", long, 1500, True),
            ("deep", deep, 9, False),
        ):
            values, columns = x.topk(k, dim=-1, largest=largest)
            found |= {f"{name}_values": values, f"{name}_columns": columns}
        order = (-long).argsort(descending=True, stable=True)
        values, columns = long.sort(stable=True, descending=True)
        more = {"sorted_values": values[:, :7], "sorted_columns": columns[:, :9]}
        return found | more | {"negated_columns": order[:, :5]}

    def request(self, rows: int, kind: str) -> dict[str, Tensor]:
        made = {
            "short": torch.randn(rows, 37),
            "long": torch.randn(rows, 3003),
            "deep": torch.randn(rows, 2, 500),
        }
        for x in made.values():
            if kind == "ties":
                x.mul_(2).round_()
            elif kind == "same":
                x.fill_(-0.5)
            elif kind == "strange":
                x[torch.rand(x.shape) < 0.2] = NAN
                x[torch.rand(x.shape) < 0.1] = -NAN
                x[torch.rand(x.shape) < 0.1] = -INF
            elif kind == "rising":
                x.copy_(x.sort(-1).values)
        return made


@pytest.mark.inductor
def test_compiled(captured: Callable[..., Path]) -> None:
    """Rows that parts of a vector end, all of a row, ties, and values that are no numbers."""
    torch.manual_seed(0)
    model = Best().eval()
    example = model.request(3, "usual")
    path = captured(model, example, buckets=[8], compiler="inductor", threads=2)
    operators = [o.target for o in read_graph(path)[8].captured.operators]
    assert operators.count(TOP_K) == 8
    with Runtime.load(path) as runtime:
        for kind in ("usual", "ties", "same", "strange", "rising"):
            for rows in (1, 8):
                request = model.request(rows, kind)
                got, want = runtime.run(request), model(**request)
                for name, values in want.items():
                    kept, of = name.split("_")
                    if of == "values":
                        np.testing.assert_array_equal(got[name], values.numpy())
                    else:
                        source = request[{"all": "short", "deep": "deep"}.get(kept, "long")]
                        source = -source if kept == "negated" else source
                        largest = kept not in ("least", "deep")
                        k = values.shape[-1]
                        first = torch.sort(source, dim=-1, descending=largest, stable=True).indices
                        np.testing.assert_array_equal(got[name], first[..., :k].numpy())
