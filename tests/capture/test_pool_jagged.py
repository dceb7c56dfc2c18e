"""Jagged bags in compiled segments: which of them, and that they are what torch makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recreplay.capture import Jagged
from recreplay.capture.features import branches
from recreplay.capture.ingest import ingest
from recreplay.capture.program import Program
from recreplay.capture.rewrites.pool_jagged import pool_jagged
from recreplay.capture.rewrites.stack_lookups import plan_stacks, stack_lookups
from recreplay.capture.specialise import specialise
from recreplay.runtime import Runtime
from recreplay.runtime.aten import JAGGED_BAGS, ROW_BAGS
from recreplay.runtime.errors import ReplayError
from recreplay.runtime.graph import read_graph

Capture = Callable[..., Path]
aten = torch.ops.aten


class Basket(nn.Module):
    """Tables `(rows, width, mode)`, each with values of its own, of which every second one is
    divided as the one before it. Divisions are offsets, starts and lengths in turn. And one with
    two ids a row."""

    def __init__(self, tables: list[tuple[int, int, str]]) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.modes = [mode for _, _, mode in tables]
        self.tables = nn.ModuleList(nn.Embedding(rows, width) for rows, width, _ in tables)

        self.plain = nn.EmbeddingBag(7, 4, mode="sum")

    def forward(self, item: Tensor, values: list[Tensor], divisions: list[Tensor]) -> Tensor:
        parts = [self.plain(item)]
        for i, (table, mode, ids) in enumerate(zip(self.tables, self.modes, values, strict=True)):
            by = divisions[i // 2]
            kind = i // 2 % 3
            starts = by.cumsum(0) - by if kind == 2 else by
            parts.append(
                F.embedding_bag(ids, table.weight, starts, mode=mode, include_last_offset=kind == 0)  # type: ignore[arg-type]
            )
        return torch.cat(parts, 1)

    def request(self, rows: int, seed: int, most: int = 4) -> dict[str, Tensor]:
        draw = np.random.default_rng(seed)
        found: dict[str, Any] = {"item": draw.integers(0, 7, (rows, 2))}
        for i, table in enumerate(self.tables):
            if i % 2 == 0:
                lengths = draw.integers(0, most + 1, rows)
                ends = np.append(0, lengths.cumsum())
                found[f"divisions_{i // 2}"] = [ends, ends[:-1], lengths][i // 2 % 3]
            found[f"values_{i}"] = draw.integers(0, table.num_embeddings, lengths.sum())
        return {k: torch.from_numpy(v) for k, v in found.items()}

    def jagged(self, capacity: int) -> list[Jagged]:
        kinds = ("offsets", "offsets", "lengths")
        return [
            Jagged(f"values_{i}", **{kinds[i // 2 % 3]: f"divisions_{i // 2}"}, capacity=capacity)
            for i in range(len(self.tables))
        ]

    def answer(self, request: dict[str, Tensor]) -> Tensor:
        values = [request[f"values_{i}"] for i in range(len(self.tables))]
        divisions = [request[f"divisions_{i}"] for i in range((len(self.tables) + 1) // 2)]
        with torch.inference_mode():
            return self(request["item"], values, divisions)


def program(model: Basket, stacked: bool = True, lowered: tuple[str, ...] = ()) -> Program:
    ingested = ingest(model.eval(), model.request(4, 0), jagged=model.jagged(5))
    made = specialise(ingested, 4)
    pool_jagged(made, plan_stacks(made) if stacked else [], lowered)
    return made


def calls(made: Program) -> list[Any]:
    return [n for n in made.graph.nodes if str(n.target) == JAGGED_BAGS]


def bags(made: Program) -> list[Any]:
    return [n for n in made.graph.nodes if n.target is aten.embedding_bag.padding_idx]


def test_tables_of_one_width_are_one_call_over_staged_ids() -> None:
    model = Basket([(20 + i, 8, "sum") for i in range(4)] + [(9, 3, "mean")])
    made = program(model)
    four, one = calls(made)
    stack = next(
        iter(plan_stacks(specialise(ingest(model, model.request(4, 0), jagged=model.jagged(5)), 4)))
    )
    spots = made.constants[str(four.args[3].target).removeprefix("const:")]
    assert spots.tolist() == [[i * 20, i // 2 * 6, start] for i, start in enumerate(stack.starts)]
    assert str(four.args[1].target).startswith("staged:")
    assert [n.args[4] for n in (four, one)] == [2, 1]  # divisions
    assert len(bags(made)) == 1  # the plain one
    found = branches(made)
    assert {"values_0", "values_3"} <= set(found.values())  # pieces are still of their features


def test_tables_that_are_not_stacked_are_a_call_each() -> None:
    assert len(calls(program(Basket([(20, 8, "sum")] * 3), stacked=False))) == 3


@pytest.mark.parametrize(
    ("tables", "lowered", "left"),
    [
        ([(20, 8, "sum"), (20, 8, "max")], (), 1),
        ([(20, 8, "sum"), (21, 8, "sum")], ("tables.0.weight",), 1),  # int8, say
        ([(20, 8, "sum"), (20, 8, "mean")], (), 0),
    ],
)
def test_which_bags(
    tables: list[tuple[int, int, str]], lowered: tuple[str, ...], left: int
) -> None:
    made = program(Basket(tables), stacked=not lowered, lowered=lowered)
    assert len(bags(made)) == left + 1
    assert len(calls(made)) == len(tables) - left
    if not lowered:
        stack_lookups(made, plan_stacks(made))  # takes what is left, or leaves it


WIDTHS = (8, 8, 8, 8, 8, 8, 5, 33, 70, 130)


@pytest.mark.inductor
def test_compiled_bags(captured: Capture) -> None:
    """Widths that vectors do not divide, all kinds of divisions, empty and long bags, threads,
    refreshed rows."""
    model = Basket([(90 + i, w, "mean" if i == 7 else "sum") for i, w in enumerate(WIDTHS)])
    path = captured(
        model,
        model.request(4, 0),
        jagged=model.jagged(40),
        buckets=[1, 4, 90],
        compiler="inductor",
        threads=2,
    )
    with Runtime.load(path) as runtime, torch.no_grad():
        operators = [o.target for o in read_graph(path)[90].captured.operators]
        assert operators.count(JAGGED_BAGS) == 5
        assert operators.count(ROW_BAGS) == 1
        assert "aten.embedding_bag.padding_idx" not in operators
        for turn in range(2):
            for rows, most in ((1, 0), (1, 40), (3, 4), (4, 40), (60, 9), (90, 40), (90, 1)):
                request = model.request(rows, rows + turn, most)
                got = runtime.run({k: v.numpy() for k, v in request.items()})["output"]
                np.testing.assert_allclose(got, model.answer(request), rtol=1e-5, atol=1e-5)
            model.tables[2].weight[7] = 2.0  # type: ignore[index,operator]
            runtime.update_rows("tables.2.weight", [7], model.tables[2].weight[7:8])  # type: ignore[index]


class Computed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(20, 4))

    def forward(self, values: Tensor, offsets: Tensor) -> Tensor:
        return F.embedding_bag(values * 7, self.table, offsets, mode="sum")


@pytest.mark.inductor
def test_an_id_that_the_model_computes_beyond_its_table(captured: Capture) -> None:
    model = Computed()
    example = {"values": torch.ones(8, dtype=torch.int64), "offsets": torch.tensor([0, 3, 3, 5])}
    path = captured(
        model,
        example,
        jagged=[Jagged("values", offsets="offsets")],
        buckets=[4],
        compiler="inductor",
    )
    assert JAGGED_BAGS in {o.target for o in read_graph(path)[4].captured.operators}
    with Runtime.load(path) as runtime, torch.no_grad():
        want = model(**example).numpy()
        for bad in (3, -1):
            values = example["values"].clone()
            values[4] = bad
            with pytest.raises(ReplayError, match=r"^replaying bucket 4 failed"):
                runtime.run({**example, "values": values})
            np.testing.assert_allclose(runtime.run(example)["output"], want, rtol=1e-5)
