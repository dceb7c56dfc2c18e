"""What operators are said to move and to compute: what they need, and no more."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from recreplay.capture.cost import operator_cost
from recreplay.capture.ingest import ingest
from recreplay.capture.least_work import least_work
from recreplay.capture.program import Program
from recreplay.capture.rewrites.attend import attend
from recreplay.capture.rewrites.recurrent import recurrent
from recreplay.capture.specialise import specialise

ROWS, WIDTH, BATCH = 1000, 8, 4


class Picked(nn.Module):
    """Rows of a table, in one of the ways that there are."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(ROWS, WIDTH), requires_grad=False)
        self.how = how

    def forward(self, ids: Tensor) -> Tensor:
        if self.how == "index":
            return self.table[ids]
        if self.how == "index_select":
            return self.table.index_select(0, ids)
        if self.how == "gather":
            return self.table.gather(0, ids[:, None].expand(-1, WIDTH))
        return nn.functional.embedding(ids, self.table)


def program(model: nn.Module, **inputs: Tensor) -> Program:
    return specialise(ingest(model.eval(), inputs), BATCH)


@pytest.mark.parametrize("how", ["index", "index_select", "gather", "embedding"])
def test_rows_that_are_picked_cost_what_they_are(how: str) -> None:
    made = program(Picked(how), ids=torch.tensor([1, 2, 999]))
    picked = BATCH * WIDTH * 4
    assert least_work(made).bytes == BATCH * 8 + 2 * picked  # ids, rows, and the output
    *_, node = (n for n in made.graph.nodes if n.op == "call_function")
    ids = BATCH * WIDTH * 8 if how == "gather" else BATCH * 8
    assert operator_cost(node).bytes == ids + 2 * picked


class Products(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        square = x[:, :, None] * y[:, None, :]
        return torch.baddbmm(square, square, square).sum((1, 2))


def test_one_tensor_may_be_all_that_a_product_reads() -> None:
    made = program(Products(), x=torch.randn(3, 5), y=torch.randn(3, 5))
    (node,) = made.graph.find_nodes(op="call_function", target=torch.ops.aten.baddbmm.default)
    assert operator_cost(node).flops == 2 * BATCH * 5 * 5 * 5


class Layers(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.layer = {"gru": nn.GRU, "lstm": nn.LSTM}.get(kind, nn.Identity)(16, 32)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "attention":
            return nn.functional.scaled_dot_product_attention(x, x, x)
        states: Tensor = self.layer(x.transpose(0, 1))[0]
        return states[-1]


@pytest.mark.parametrize(
    ("kind", "shape", "operations"),
    [
        ("attention", (3, 5, 16), 2 * BATCH * 3 * 5 * 5 * (16 + 16)),
        ("gru", (5, 16), 2 * BATCH * 5 * 96 * (16 + 32)),
        ("lstm", (5, 16), 2 * BATCH * 5 * 128 * (16 + 32)),
    ],
)
def test_layers_of_sequences_cost_the_same_as_ours(
    kind: str, shape: tuple[int, ...], operations: int
) -> None:
    """Within what adds up, and what scales and normalises it."""
    made = program(Layers(kind), x=torch.randn(BATCH, *shape))
    for _ in range(2):
        nodes = [n for n in made.graph.nodes if n.op == "call_function"]
        total = sum(operator_cost(node).flops for node in nodes)
        assert operations <= total < 1.3 * operations
        attend(made)
        recurrent(made)


class Summed(nn.Module):
    """Products that stay torch's: over dimensions that lie apart, and by windows of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.apart = nn.Parameter(torch.randn(3, 2, 5, 7))
        self.window = nn.Conv1d(3, 3, 2, groups=3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.einsum("bfi,ftio->bto", x, self.apart), self.window(x)


def test_products_of_many_dimensions_are_multiplied_out() -> None:
    made = program(Summed(), x=torch.randn(2, 3, 5))
    flops = {n.target: operator_cost(n).flops for n in made.graph.nodes if n.op == "call_function"}
    assert flops[torch.ops.aten.einsum.default] == 2 * BATCH * 3 * 5 * 2 * 7
    assert flops[torch.ops.aten.conv1d.default] == 2 * BATCH * 3 * 4 * 2
