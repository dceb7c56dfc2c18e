"""Bags of float32 rows in compiled segments: which of them, and that they are what torch makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recreplay.capture.ingest import ingest
from recreplay.capture.program import Program
from recreplay.capture.rewrites.pool_rows import pool_rows
from recreplay.capture.rewrites.stack_lookups import plan_stacks, stack_lookups
from recreplay.capture.specialise import specialise
from recreplay.runtime import Runtime
from recreplay.runtime.aten import ROW_BAGS
from recreplay.runtime.errors import ReplayError
from recreplay.runtime.graph import read_graph

aten = torch.ops.aten
WIDTHS = (5, 16, 33, 48, 70, 130)


class Run(nn.Module):
    """`forward` by a function of two tables and an input."""

    def __init__(self, run: Callable[[Tensor, Tensor, Tensor], Tensor], width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.a, self.b = (nn.Parameter(torch.randn(rows, width)) for rows in (20, 30))
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.a, self.b, x)


def program(model: nn.Module, example: Any) -> Program:
    made = specialise(ingest(model.eval(), example), 4)
    pool_rows(made)
    return made


def calls(made: Program) -> list[Any]:
    return [n for n in made.graph.nodes if str(n.target) == ROW_BAGS]


class Mixed(nn.Module):
    """Three tables of one width, with bags of two lengths."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.tables = nn.ModuleList(nn.EmbeddingBag(9 + i, 8, mode="sum") for i in range(3))

    def forward(self, ids: list[Tensor]) -> Tensor:
        return torch.cat([t(i) for t, i in zip(self.tables, ids, strict=True)], 1)


def test_stacked_tables_are_counted_from_where_each_begins() -> None:
    """No number is added to every id, and bags of one length are one call."""
    example = {f"ids_{i}": torch.randint(0, 9, (4, w)) for i, w in enumerate((2, 5, 2))}
    made = specialise(ingest(Mixed().eval(), example), 4)
    (stack,) = plan_stacks(made)
    stack_lookups(made, [stack])
    pool_rows(made)
    short, long = calls(made)
    assert [n.args[3] for n in (short, long)] == [2, 5]
    first = [made.constants[str(n.args[2].target).removeprefix("const:")] for n in (short, long)]
    zero, one, two = stack.starts
    assert [f.tolist() for f in first] == [[zero] * 4 + [two] * 4, [one] * 4]
    assert aten.add.Tensor not in {n.target for n in made.graph.nodes}
    assert aten.embedding_bag.padding_idx not in {n.target for n in made.graph.nodes}


@pytest.mark.parametrize(
    ("run", "count"),
    [
        (lambda a, b, x: F.embedding_bag(x, a, mode="sum"), 1),
        (lambda a, b, x: F.embedding_bag(x, a, mode="mean"), 1),
        (lambda a, b, x: F.embedding_bag(x, a, mode="max"), 0),  # an embedding and its maximum
        (lambda a, b, x: F.embedding_bag(x, a, mode="sum", padding_idx=2), 0),
        (lambda a, b, x: F.embedding_bag(x, a, mode="sum", padding_idx=-1), 0),  # the last row
        (lambda a, b, x: F.embedding_bag(x, a, mode="sum", per_sample_weights=x.float()), 0),
        (lambda a, b, x: F.embedding_bag(x, a * 2, mode="sum"), 1),  # a table that is made once
        (lambda a, b, x: F.embedding_bag(x, a * x.sum(), mode="sum"), 0),  # for each request
        (lambda a, b, x: F.embedding_bag(x, a.double(), mode="sum").float(), 0),
        (lambda a, b, x: F.embedding(x, a).sum(1), 1),
        (lambda a, b, x: F.embedding(x, a).mean(-2), 1),
        (lambda a, b, x: F.embedding(x, a).sum(2), 0),
        (lambda a, b, x: F.embedding(x, a).relu().sum(1), 0),
        (lambda a, b, x: F.embedding(x, a * x.sum()).sum(1), 0),
        (lambda a, b, x: F.embedding(x, a.double()).sum(1).float(), 0),
    ],
)
def test_which_bags(run: Any, count: int) -> None:
    made = program(Run(run), {"x": torch.randint(0, 20, (4, 3))})
    assert len(calls(made)) == count


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_one_length_are_no_bags_any_more(mode: str) -> None:
    made = program(
        Run(lambda a, b, x: F.embedding_bag(x, a, mode=mode)), {"x": torch.ones(4, 3).long()}
    )
    assert aten.embedding_bag.padding_idx not in {n.target for n in made.graph.nodes}


def test_ids_that_differ_by_place_keep_what_is_added() -> None:
    """One table of several, as some models have it: their offsets are not those of bags."""
    model = Run(lambda a, b, x: F.embedding_bag(x + torch.tensor([0, 5, 9]), a, mode="sum"))
    made = program(model, {"x": torch.randint(0, 5, (4, 3))})
    assert [n.args[2] for n in calls(made)] == [None]


class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.bags = nn.ModuleList(
            nn.EmbeddingBag(300, width, mode="mean" if width % 2 else "sum") for width in WIDTHS
        )
        self.twins = nn.ModuleList(nn.EmbeddingBag(40 + i, 24, mode="sum") for i in range(3))

    def forward(self, long: Tensor, short: Tensor, other: Tensor) -> Tensor:
        found = [bag(short if i % 2 else long) for i, bag in enumerate(self.bags)]
        twins = zip(self.twins, (short, other, long % 40), strict=True)
        added = F.embedding(long, self.bags[1].weight).mean(1)
        most = F.embedding_bag(long, self.bags[2].weight, mode="max")
        return torch.cat([*found, *(twin(ids) for twin, ids in twins), added, most], dim=1)

    def request(self, rows: int) -> dict[str, Tensor]:
        return {
            "long": torch.randint(0, 300, (rows, 70)),
            "short": torch.randint(0, 40, (rows, 1), dtype=torch.int32),
            "other": torch.randint(0, 41, (rows, 12)),
        }


@pytest.mark.inductor
def test_compiled_bags(captured: Callable[..., Path]) -> None:
    """Widths that vectors do not divide, lengths that are fetched in other bags and in their own,
    stacked tables, threads, refreshed rows."""
    model = Bags().eval()
    example = model.request(3)
    path = captured(model, example, buckets=[1, 4, 200], compiler="inductor", threads=2)
    with Runtime.load(path) as runtime, torch.no_grad():
        operators = [o.target for o in read_graph(path)[200].captured.operators]
        assert operators.count(ROW_BAGS) == len(WIDTHS) + 3 + 1  # of twins, one a length
        for _ in range(2):
            for rows in (1, 3, 150, 200):
                request = model.request(rows)
                got = runtime.run({k: v.numpy() for k, v in request.items()})["output"]
                np.testing.assert_allclose(got, model(**request).numpy(), rtol=1e-5, atol=1e-5)
            model.bags[4].weight[7] = 2.0  # type: ignore[union-attr,index]
            runtime.update_rows("bags.4.weight", [7], model.bags[4].weight[7:8])  # type: ignore[index]


@pytest.mark.inductor
def test_an_id_that_the_model_computes_beyond_its_table(captured: Callable[..., Path]) -> None:
    model = Run(lambda a, b, x: F.embedding_bag(x * 7, a, mode="sum"))
    example = {"x": torch.randint(0, 2, (4, 3))}
    path = captured(model, example, buckets=[100], compiler="inductor", threads=2)
    good = torch.randint(0, 2, (80, 3))
    with Runtime.load(path) as runtime, torch.no_grad():
        want = model(good).numpy()
        for bad in (3, -1):
            request = good.clone()
            request[70, 1] = bad
            with pytest.raises(ReplayError, match=r"^replaying bucket 100 failed"):
                runtime.run({"x": request})
            np.testing.assert_allclose(runtime.run({"x": good})["output"], want, rtol=1e-5)
