"""Attention units multiply each item once: in which forms that is seen, and that scores stay."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recreplay.capture.ingest import ingest
from recreplay.capture.program import Program
from recreplay.capture.rewrites.split_linears import split_linears
from recreplay.capture.specialise import specialise
from recreplay.runtime import Runtime

Capture = Callable[..., Path]
aten = torch.ops.aten
ITEMS, WIDTH = 17, 6


def beside(items: Tensor, vector: Tensor) -> Tensor:
    return vector.unsqueeze(1).expand_as(items)


def repeated(items: Tensor, vector: Tensor) -> Tensor:
    return vector.unsqueeze(1).repeat(1, items.shape[1], 1)


def paper(items: Tensor, vector: Tensor) -> list[Tensor]:
    also = beside(items, vector)
    return [items, items * also, also]


def common(items: Tensor, vector: Tensor) -> list[Tensor]:
    also = repeated(items, vector)
    return [also, items, also - items, also * items]


def without_the_vector(items: Tensor, vector: Tensor) -> list[Tensor]:
    return [items * beside(items, vector), items]


def products_alone(items: Tensor, vector: Tensor) -> list[Tensor]:
    return [vector.unsqueeze(1) * items]


def sums(items: Tensor, vector: Tensor) -> list[Tensor]:
    return [items - vector.unsqueeze(1), items * vector.unsqueeze(1), beside(items, vector) + items]


def without_products(items: Tensor, vector: Tensor) -> list[Tensor]:
    return [items, items - beside(items, vector)]


def of_two_lists(items: Tensor, vector: Tensor) -> list[Tensor]:
    return [items, items.relu() * beside(items, vector)]


def scaled(items: Tensor, vector: Tensor) -> list[Tensor]:
    return [items * beside(items, vector), torch.sub(items, beside(items, vector), alpha=2)]


def of_one_number(items: Tensor, vector: Tensor) -> list[Tensor]:
    return [items, items * vector.sum(1).view(-1, 1, 1), items - vector[:, :1].unsqueeze(2)]


def of_one_vector_for_all(items: Tensor, vector: Tensor) -> list[Tensor]:
    return [items, items * torch.arange(float(WIDTH)).view(1, 1, -1)]


Parts = Callable[[Tensor, Tensor], list[Tensor]]


class Unit(nn.Module):
    """Scores of the items of a list, or of its rows where `mixes`, which has other vectors too."""

    def __init__(self, parts: Parts, hidden: int = 5, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.parts = parts
        given = sum(
            part.shape[2] for part in parts(torch.ones(2, ITEMS, WIDTH), torch.ones(2, WIDTH))
        )
        self.hidden = nn.Linear(given, hidden, bias=bias)
        self.score = nn.Linear(hidden, 1)

    def forward(self, items: Tensor, vector: Tensor) -> Tensor:
        seen = self.parts(items, vector)
        wide = torch.cat(seen, dim=-1) if len(seen) > 1 else seen[0]
        return self.score(torch.relu(self.hidden(wide))).flatten(1)


class OfRows(Unit):
    """A unit that takes the items of all lists as the rows of one matrix, as batch norms want."""

    def forward(self, items: Tensor, vector: Tensor) -> Tensor:
        wide = torch.cat(self.parts(items, vector), dim=-1)
        hidden = self.hidden(wide.view(-1, wide.shape[2]))
        return self.score(torch.relu(hidden)).view(-1, items.shape[1])


def example(rows: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(rows)
    return {
        "items": torch.randn(rows, ITEMS, WIDTH, generator=draw),
        "vector": torch.randn(rows, WIDTH, generator=draw),
    }


def split(model: nn.Module, bucket: int = 4) -> Program:
    made = specialise(ingest(model.eval(), example(3)), bucket)
    split_linears(made)
    return made


def products(program: Program) -> list[tuple[int, ...]]:
    """Shapes of the weights that lists meet."""
    return [
        tuple(node.args[-1].meta["val"].shape)
        for node in program.graph.nodes
        if node.target in (aten.bmm.default, aten.baddbmm.default)
    ]


SPLIT = [paper, common, sums, without_the_vector]
WHOLE = [
    *(products_alone, without_products, of_two_lists, scaled, of_one_number),
    of_one_vector_for_all,
]


@pytest.mark.parametrize("unit", [Unit, OfRows])
@pytest.mark.parametrize("parts", SPLIT)
@pytest.mark.parametrize("bucket", [1, 4])
def test_each_list_meets_a_weight_of_its_own(unit: type[Unit], parts: Parts, bucket: int) -> None:
    made = split(unit(parts), bucket)
    assert products(made) == [(bucket, WIDTH, 5)]
    assert not made.graph.find_nodes(op="call_function", target=aten.cat.default)


@pytest.mark.parametrize("parts", WHOLE)
def test_other_layers_stay_as_they_are(parts: Parts) -> None:
    assert products(split(Unit(parts))) == []


def test_short_lists_stay_as_they_are() -> None:
    class Short(Unit):
        def forward(self, items: Tensor, vector: Tensor) -> Tensor:
            return super().forward(items[:, :15], vector)

    assert products(split(Short(paper))) == []


def test_layers_over_rows_stay_as_they_are() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2 * WIDTH, 3)

        def forward(self, items: Tensor, vector: Tensor) -> Tensor:
            first = items[:, 0]
            return self.layer(torch.cat([first, first * vector], dim=1))

    assert products(split(Rows())) == []


@pytest.mark.parametrize("parts", SPLIT)
@pytest.mark.parametrize("narrow", ["items", "vector"])
def test_what_is_widened_stays_as_it_is(captured: Capture, parts: Parts, narrow: str) -> None:
    """A table of half precision is concatenated with what is not."""

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unit = Unit(parts)

        def forward(self, items: Tensor, vector: Tensor) -> Tensor:
            if narrow == "items":
                return self.unit(items.half(), vector)
            return self.unit(items, vector.half())

    model = Halves()
    with Runtime.load(captured(model, example(3), rtol=1e-4)) as runtime:
        check(runtime, model)


class Twins(nn.Module):
    """Two units that are alike, so that they are stacked as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Unit(common), Unit(common)

    def forward(self, items: Tensor, vector: Tensor) -> Tensor:
        return torch.cat([self.first(items, vector), self.second(items * 2, vector)], dim=1)


def test_units_that_are_alike_are_split_and_stacked(captured: Capture) -> None:
    model = Twins()
    with Runtime.load(captured(model, example(3), buckets=[1, 4])) as runtime:
        check(runtime, model)


@pytest.mark.parametrize("unit", [Unit, OfRows])
@pytest.mark.parametrize("parts", SPLIT)
@pytest.mark.parametrize("bias", [True, False])
def test_scores_are_the_models(
    captured: Capture, unit: type[Unit], parts: Parts, bias: bool
) -> None:
    model = unit(parts, bias=bias)
    path = captured(model, example(3), buckets=[1, 4])
    with Runtime.load(path) as runtime:
        check(runtime, model)
        for weight in (model.hidden.weight, model.score.weight):
            with torch.no_grad():
                weight.mul_(-1.5)
        runtime.update_weights(
            {"hidden.weight": model.hidden.weight, "score.weight": model.score.weight}
        )
        check(runtime, model)


class Units(nn.Module):
    """Two units: of fewer columns than a block has, and of more."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = Unit(common, 36), Unit(paper, 150)

    def forward(self, items: Tensor, vector: Tensor) -> Tensor:
        return self.narrow(items, vector) + self.wide(items, vector)


@pytest.mark.inductor
@pytest.mark.skipif(platform.machine() != "x86_64", reason="layers are packed on x86-64 alone")
def test_compiled_scores_are_the_models(captured: Capture) -> None:
    model = Units()
    path = captured(model, example(3), buckets=[1, 4, 16], compiler="inductor")
    with Runtime.load(path) as runtime:
        check(runtime, model)


def check(runtime: Runtime, model: nn.Module) -> None:
    with torch.inference_mode():
        for rows in (1, 2, 4, 9):
            request = example(rows)
            got = runtime.run({name: value.numpy() for name, value in request.items()})
            np.testing.assert_allclose(
                got["output"], model(**request).numpy(), rtol=1e-4, atol=1e-5
            )
