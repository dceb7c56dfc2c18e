"""Products with a weight that models write in other ways than as linear layers."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recreplay.capture import plain_convolutions
from recreplay.capture.ingest import ingest
from recreplay.capture.program import Program
from recreplay.capture.rewrites.pack_linears import pack_linears
from recreplay.capture.specialise import specialise
from recreplay.runtime import Runtime
from recreplay.runtime.packed_linear import packed_linear_operator

Capture = Callable[..., Path]
Run = Callable[[nn.Module, Tensor], Tensor]
aten = torch.ops.aten


class Products(nn.Module):
    """`run` of items `[B, 3, 6]`, and weights of all kinds."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.run = run
        self.inward = nn.Parameter(torch.randn(6, 4))
        self.outward = nn.Parameter(torch.randn(4, 6))
        self.many = nn.Parameter(torch.randn(2, 2, 4, 6))
        self.each = nn.Parameter(torch.randn(3, 6, 4))
        self.bias = nn.Parameter(torch.randn(4))
        self.single = nn.Parameter(torch.randn(4, 6, 1))
        self.pairs = nn.Parameter(torch.randn(4, 6, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def columns(m: nn.Module, x: Tensor) -> Tensor:
    return (m.outward @ x[:, 0].unsqueeze(2)).squeeze(2)


def wide_columns(m: nn.Module, x: Tensor) -> Tensor:
    return torch.matmul(m.outward, x.transpose(1, 2)).view(-1, 12)


def experts(m: nn.Module, x: Tensor) -> Tensor:
    column = x[:, 1].unsqueeze(2)
    return torch.cat([torch.matmul(m.many[i][k], column) for i in (0, 1) for k in (0, 1)], 2)


LAYERS: dict[str, Run] = {
    "rows": lambda m, x: x @ m.inward,
    "one matrix": lambda m, x: torch.mm(x[:, 0], m.inward),
    "turned": lambda m, x: x @ m.outward.t(),
    "turned back": lambda m, x: torch.matmul(x, m.outward.transpose(-2, -1)).relu(),
    "biased": lambda m, x: torch.addmm(m.bias, x.reshape(-1, 6), m.inward).view(-1, 12),
    "biased by one": lambda m, x: torch.addmm(m.bias[:1], x[:, 0], m.inward),
    "tensordot": lambda m, x: torch.tensordot(x, m.inward, dims=([-1], [0])),
    "tensordot by columns": lambda m, x: torch.tensordot(x, m.outward, dims=([-1], [1])),
    "tensordot of the items": lambda m, x: torch.tensordot(x, m.each[:, 0], dims=([1], [0])),
    "einsum": lambda m, x: torch.einsum("bli, io -> blo", x, m.inward),
    "einsum of a turned one": lambda m, x: torch.einsum("bli,io->blo", x, m.outward.t()),
    "einsum, turned": lambda m, x: torch.einsum("oi,bli->bol", m.outward, x),
    "einsum of several": lambda m, x: torch.einsum("bli,njoi->bnljo", x, m.many),
    "columns": columns,
    "wide columns": wide_columns,
    "a weight by rows": lambda m, x: F.linear(m.outward, x[:, 0]).tanh().t(),
    "experts": experts,
    "single items": lambda m, x: F.conv1d(x.transpose(1, 2), m.single).transpose(1, 2),
    "pairs of items": lambda m, x: F.conv1d(x.transpose(1, 2), m.pairs),
    "padded items": lambda m, x: F.conv1d(x.transpose(1, 2), m.pairs, m.bias[:4], padding=2),
    "every other item": lambda m, x: F.conv1d(x.transpose(1, 2), m.single, stride=2),
    "items apart": lambda m, x: F.conv1d(x.transpose(1, 2), m.pairs, dilation=2, padding=1),
    "whole rows": lambda m, x: F.conv2d(x.unsqueeze(1), m.pairs.transpose(1, 2).unsqueeze(1)),
    "whole columns": lambda m, x: F.conv2d(
        x.transpose(1, 2).unsqueeze(1), m.pairs.unsqueeze(1), m.bias[:4], padding=(0, 1)
    ),
    "whole lists, viewed": lambda m, x: F.conv2d(  # as Caser has them
        x.unsqueeze(1), m.pairs[:, :3, :1].unsqueeze(1)
    ).view(-1, 24),
    "many items": lambda m, x: F.conv1d(
        x.transpose(1, 2), m.pairs.repeat(1, 1, 5), padding=5, stride=2
    ),
    "all items": lambda m, x: F.conv1d(x.transpose(1, 2), m.pairs.repeat(1, 1, 2)[:, :, 1:]),
    "lists as images": lambda m, x: F.conv2d(  # NextItNet's, with gaps across too
        x.transpose(1, 2).unsqueeze(2), m.pairs.unsqueeze(2), m.bias[:4], stride=2, dilation=2
    ),
    "as many items": lambda m, x: F.conv1d(x.transpose(1, 2), m.pairs, padding="same"),
    "as many items apart": lambda m, x: F.conv1d(
        x.transpose(1, 2), m.pairs, m.bias[:4], padding="same", dilation=2
    ),
    "no more items": lambda m, x: F.conv1d(x.transpose(1, 2), m.pairs, padding="valid"),
    "biased single items": lambda m, x: F.conv1d(x.transpose(1, 2), m.single, m.bias).relu(),
}
OTHERS: dict[str, Run] = {
    "scaled": lambda m, x: torch.addmm(m.bias, x[:, 0], m.inward, beta=2.0),
    "two requests": lambda m, x: x @ x.transpose(1, 2),
    "a weight for each": lambda m, x: torch.matmul(x.unsqueeze(2), m.each).squeeze(2),
    "parts of rows": lambda m, x: F.conv2d(x.unsqueeze(1), m.pairs[:, :2].unsqueeze(1)),
    "items of each column": lambda m, x: F.conv2d(  # as CCPM and FGCNN have them
        x.unsqueeze(1), m.pairs[:, :1].unsqueeze(3), m.bias[:4], padding="same"
    ),
    "items by group": lambda m, x: F.conv1d(x.transpose(1, 2), m.single[:, :3], groups=2),
    "one vector": lambda m, x: x @ m.outward[0],
    "whole numbers": lambda m, x: (x.long() @ m.inward.long()).float(),
}


def specialised(run: Run, bucket: int = 4) -> Program:
    return specialise(ingest(Products(run).eval(), {"x": torch.randn(3, 3, 6)}), bucket)


def targets(program: Program) -> list[object]:
    return [n.target for n in program.graph.nodes if n.op == "call_function"]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("bucket", [1, 4])
def test_products_with_a_weight_are_layers(name: str, bucket: int) -> None:
    found = targets(specialised(LAYERS[name], bucket))
    assert aten.linear.default in found
    assert not {aten.matmul.default, aten.mm.default, aten.addmm.default} & set(found)


def test_windows_of_much_memory_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_convolutions, "_MOST", 4 * 3 * 2 * 6)
    at_most, more = (specialised(LAYERS["padded items"], bucket) for bucket in (1, 4))
    assert aten.linear.default in targets(at_most)
    assert aten.conv1d.default in targets(more)


def test_a_product_that_is_written_twice_is_one_layer() -> None:
    found = targets(specialised(lambda m, x: torch.cat([x @ m.inward, (x @ m.inward).exp()], 2)))
    assert found.count(aten.linear.default) == 1


@pytest.mark.parametrize("name", OTHERS)
def test_other_products_stay_as_they_are(name: str) -> None:
    assert aten.linear.default not in targets(specialised(OTHERS[name]))


def test_layers_with_weights_that_lie_turned_are_packed() -> None:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        items = F.conv1d(x.transpose(1, 2), m.single).transpose(1, 2)
        return torch.relu(x @ m.inward) + x @ m.outward.t() + items

    made = specialised(run)
    pack_linears(made)
    found = [n for n in made.graph.nodes if n.target is packed_linear_operator()]
    assert {str(n.args[1].target) for n in found} == {
        "turned_packed:inward",
        "packed:outward",
        "packed:single",
    }
    assert {tuple(n.args[1].meta["val"].shape) for n in found} == {(4, 6)}


def check(path: Path, model: nn.Module) -> None:
    with Runtime.load(path) as runtime, torch.no_grad():
        for scale in (1.0, -0.5):
            model.inward.mul_(scale)
            model.many.mul_(scale)
            model.pairs.mul_(scale)
            runtime.update_weights(model.state_dict())
            for rows in (1, 2, 4, 9):
                x = torch.randn(rows, 3, 6)
                got = runtime.run({"x": x.numpy()})["output"]
                np.testing.assert_allclose(got, model(x).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*LAYERS, *OTHERS])
def test_scores_are_the_models(captured: Capture, name: str) -> None:
    model = Products((LAYERS | OTHERS)[name]).eval()
    check(captured(model, {"x": torch.randn(3, 3, 6)}, buckets=[1, 4]), model)


@pytest.mark.inductor
@pytest.mark.skipif(platform.machine() != "x86_64", reason="layers are packed on x86-64 alone")
@pytest.mark.parametrize("options", [{}, {"precision": "bf16"}])
def test_compiled_scores_are_the_models(captured: Capture, options: dict[str, str]) -> None:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        items = F.conv1d(x.transpose(1, 2), m.single, m.bias).transpose(1, 2)
        parts = [x @ m.inward, items, wide_columns(m, x).view(-1, 4, 3).transpose(1, 2)]
        return torch.cat([*parts, experts(m, x).transpose(1, 2)], dim=1).flatten(1)

    model = Products(run).eval()
    example = {"x": torch.randn(3, 3, 6)}
    path = captured(model, example, buckets=[1, 4, 16], compiler="inductor", **options)
    if options:
        return  # what it may differ by is told at capture
    check(path, model)
