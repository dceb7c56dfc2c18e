"""Linear layers over copies of their weights, packed or turned: where they are, that they compute
the same, and that the copies of a refreshed weight are made again."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recreplay.capture.ingest import ingest
from recreplay.capture.program import Program
from recreplay.capture.rewrites.pack_linears import pack_large_linears, pack_linears
from recreplay.capture.rewrites.turn_linears import turn_linears
from recreplay.capture.specialise import specialise
from recreplay.runtime import Runtime
from recreplay.runtime.packed_linear import packed_linear_operator

Capture = Callable[..., Path]
aten = torch.ops.aten
PACKED = packed_linear_operator()

on_x86 = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="layers are packed on x86-64 alone"
)

needs_pairs = pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(),
    reason="layers are packed in bfloat16 where the CPU has AVX512-BF16",
)


class Layers(nn.Module):
    """Two large layers, one of them with a ReLU that is also an output, and a small one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Linear(96, 1500)
        self.second = nn.Linear(1500, 128, bias=False)
        self.last = nn.Linear(128, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu(self.first(x))
        middle = self.second(hidden)
        return {"middle": middle, "score": self.last(torch.relu(middle))}


def packed(
    model: nn.Module,
    example: dict[str, Tensor],
    bucket: int,
    rewrite: Callable[..., None] = pack_linears,
    **options: bool,
) -> Program:
    made = specialise(ingest(model.eval(), example), bucket)
    rewrite(made, **options)
    return made


def calls(program: Program, target: object) -> list[tuple[Any, ...]]:
    return [n.args for n in program.graph.nodes if n.target is target]


def test_all_layers_are_packed_with_the_relu_that_alone_reads_them() -> None:
    made = packed(Layers(), {"x": torch.randn(3, 96)}, 8)
    found = calls(made, PACKED)
    assert [str(args[1].target) for args in found] == [
        "packed:first.weight",
        "packed:second.weight",
        "packed:last.weight",
    ]
    assert found[1][2] is None
    assert [args[3:] for args in found] == [(1, 1500, True), (1, 128, False), (1, 2, False)]
    assert len(calls(made, aten.relu.default)) == 1  # its input is an output
    assert calls(made, aten.linear.default) == []


@pytest.mark.parametrize("bucket", [1, 8])
def test_large_layers_come_first(bucket: int) -> None:
    made = packed(Layers(), {"x": torch.randn(3, 96)}, bucket, pack_large_linears)
    assert [args[4] for args in calls(made, PACKED)] == [1500, 128]


class Products(nn.Module):
    """Batched products of the model's own: of the last rows of each share, and with one bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.weight = nn.Parameter(torch.randn(12, 5))
        self.bias = nn.Parameter(torch.randn(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        shares, lanes = self.weight.view(3, 4, 5), x.expand(3, -1, -1)
        last = torch.bmm(lanes, shares[:, 2:].transpose(1, 2))
        biased = torch.baddbmm(self.bias.unsqueeze(1), lanes, shares.transpose(1, 2))
        return torch.cat([last, biased], dim=2).permute(1, 0, 2)


def test_products_of_other_shares_stay_as_they_are() -> None:
    made = packed(Products(), {"x": torch.randn(3, 5)}, 8)
    assert calls(made, PACKED) == []


def test_weights_without_pairs_stay_where_pairs_are_wanted() -> None:
    made = packed(
        nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)), {"input": torch.randn(3, 5)}, 8, even=True
    )
    assert [str(args[1].target) for args in calls(made, PACKED)] == ["packed:1.weight"]


class Wide(nn.Module):
    """Small layers over rows, over items of rows, and over one vector."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.rows = nn.Linear(6, 5)
        self.items = nn.Linear(5, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        items = torch.relu(self.rows(x)).reshape(-1, 1, 5).expand(-1, 3, 5)
        return self.items(items * 2.0)


def test_small_layers_of_several_rows_read_turned_weights(captured: Capture) -> None:
    for rows, turned in ((4, {"rows.weight", "items.weight"}), (1, {"items.weight"})):
        made = specialise(ingest(Wide().eval(), {"x": torch.randn(3, 6)}), rows)
        turn_linears(made)
        names = [str(n.target) for n in made.graph.find_nodes(op="placeholder")]
        assert {n.removeprefix("turned:") for n in names if n.startswith("turned:")} == turned
        assert len(calls(made, aten.linear.default)) == 2 - len(turned)
    model = Wide().eval()
    path = captured(model, {"x": torch.randn(3, 6)}, buckets=[1, 4])
    with Runtime.load(path) as runtime, torch.inference_mode():
        for n in (1, 2, 4, 9):
            x = torch.randn(n, 6)
            found = next(iter(runtime.run({"x": x.numpy()}).values()))
            np.testing.assert_allclose(found, model(x).numpy(), rtol=1e-5, atol=1e-6)


def check(path: Path, model: nn.Module) -> None:
    with Runtime.load(path) as runtime, torch.inference_mode():
        for rows in (1, 2, 5, 8, 11):
            x = torch.randn(rows, 96)
            got, want = runtime.run({"x": x.numpy()}), model(x)
            for name in want:
                np.testing.assert_allclose(got[name], want[name].numpy(), rtol=1e-4, atol=1e-5)


@on_x86
@pytest.mark.parametrize(
    "compiler", ["eager", pytest.param("inductor", marks=pytest.mark.inductor)]
)
def test_scores_and_refreshed_scores(captured: Capture, compiler: str) -> None:
    model = Layers().eval()
    path = captured(model, {"x": torch.randn(3, 96)}, buckets=[1, 4, 8], compiler=compiler)
    with Runtime.load(path, lanes=2) as runtime, torch.no_grad():
        kind = "packed" if compiler == "inductor" else "turned"
        names = {name for s in runtime.manifest.buckets[-1].segments for name in s.inputs}
        assert {f"{kind}:first.weight", f"{kind}:last.weight"} <= names
        for scale in (1.0, -0.5, 2.0):
            model.last.weight.add_(scale)
            runtime.update_rows("last.weight", [1, 0], model.last.weight[[1, 0]])
            model.first.weight.mul_(scale)
            runtime.update_weights({"first.weight": model.first.weight})
            model.second.weight[3].add_(1.0)
            runtime.update_rows("second.weight", [3], model.second.weight[3:4])
            for rows in (1, 3, 8):
                x = torch.randn(rows, 96)
                got, want = runtime.run({"x": x.numpy()}), model(x)
                for name in want:
                    np.testing.assert_allclose(got[name], want[name].numpy(), rtol=1e-4, atol=1e-4)


def test_the_artifact_stores_each_weight_once(captured: Capture) -> None:
    model = Layers().eval()
    path = captured(model, {"x": torch.randn(3, 96)}, buckets=[1, 8])
    total = sum(p.numel() * 4 for p in model.parameters())
    assert (path / "weights.safetensors").stat().st_size < total + 4096
    check(path, model)


class Towers(nn.Module):
    """Towers of several widths over one input, and branches over pieces of it."""

    def __init__(self, width: int, hidden: int, towers: int) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.shared = nn.ModuleList(nn.Linear(width, hidden) for _ in range(towers))
        self.own = nn.ModuleList(nn.Linear(hidden, 3, bias=False) for _ in range(towers))

    def forward(self, x: Tensor) -> Tensor:
        hidden = [torch.relu(layer(x)) for layer in self.shared]
        own = [layer(h) for layer, h in zip(self.own, hidden, strict=True)]
        return torch.cat([*own, *hidden], dim=1)


@on_x86
@pytest.mark.inductor
@pytest.mark.parametrize(
    ("width", "hidden", "towers", "threads", "precision"),
    [
        (7, 130, 3, 2, "fp32"),
        pytest.param(34, 66, 3, 1, "bf16", marks=needs_pairs),
    ],
)
def test_stacked_towers_are_lanes_of_one_packed_storage(
    captured: Capture, width: int, hidden: int, towers: int, threads: int, precision: str
) -> None:
    model = Towers(width, hidden, towers).eval()
    path = captured(
        model,
        {"x": torch.randn(3, width)},
        buckets=[1, 4, 150, 300],
        compiler="inductor",
        threads=threads,
        precision=precision,
    )
    rtol, atol = (1e-4, 1e-5) if precision == "fp32" else (0.02, 0.05)
    with Runtime.load(path) as runtime, torch.no_grad():
        names = {name for s in runtime.manifest.buckets[-1].segments for name in s.inputs}
        assert sum(name.startswith("packed:branches_") for name in names) == 2
        for _ in range(2):
            for rows in (1, 3, 4, 140, 300):
                x = torch.randn(rows, width)
                got = runtime.run({"x": x.numpy()})["output"]
                np.testing.assert_allclose(got, model(x).numpy(), rtol=rtol, atol=atol)
            model.shared[1].weight.mul_(-2.0)  # of a storage, so its copy is made again
            runtime.update_weights({"shared.1.weight": model.shared[1].weight})
            model.own[0].weight[2].add_(1.0)
            runtime.update_rows("own.0.weight", [2], model.own[0].weight[2:])


class Narrow(nn.Module):
    """Layers of one to four columns, over inputs of many lengths, with and without the rest."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(8)
        self.lengths = (1, 5, 8, 15, 16, 24, 40, 512, 513)
        self.layers = nn.ModuleList(
            nn.Linear(length, 1 + i % 4, bias=i % 3 > 0) for i, length in enumerate(self.lengths)
        )

    def forward(self, x: Tensor) -> Tensor:
        made = [layer(x[:, : layer.in_features]) for layer in self.layers]
        return torch.cat([torch.relu(y) if i % 2 else y for i, y in enumerate(made)], dim=1)


@on_x86
@pytest.mark.inductor
def test_layers_of_few_columns(captured: Capture) -> None:
    """Some of the values are not numbers, and stay that behind a ReLU."""
    model = Narrow().eval()
    example = {"x": torch.randn(3, 513)}
    path = captured(model, example, buckets=[2, 9], compiler="inductor", rewrites=("pack_linears",))
    with Runtime.load(path) as runtime, torch.no_grad():
        names = {name for s in runtime.manifest.buckets[-1].segments for name in s.inputs}
        assert sum(name.startswith("packed:") for name in names) == len(model.lengths)
        for rows in (1, 2, 9, 30):
            x = torch.randn(rows, 513)
            x[0, 20] = float("nan")
            got = runtime.run({"x": x.numpy()})["output"]
            np.testing.assert_allclose(got, model(x).numpy(), rtol=1e-4, atol=1e-5)


class Shapes(nn.Module):
    """Layers of every number of vectors and of columns in the last, each beside another's."""

    def __init__(self, even: bool) -> None:
        super().__init__()
        torch.manual_seed(9)
        columns = (5, 15, 16, 17, 32, 47, 48, 63, 64, 65, 130)
        lengths = (2, 64, 70) if even else (1, 33, 70)
        self.layers = nn.ModuleList(
            nn.Linear(lengths[i % 3], n, bias=i % 4 > 0) for i, n in enumerate(columns)
        )

    def forward(self, x: Tensor) -> Tensor:
        made = [layer(x[:, : layer.in_features]) for layer in self.layers]
        return torch.cat([torch.relu(y) if i % 2 else y for i, y in enumerate(made)], dim=1)


@on_x86
@pytest.mark.inductor
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_pairs)])
def test_rows_and_columns_of_every_tile(captured: Capture, precision: str) -> None:
    model = Shapes(precision == "bf16").eval()
    buckets = [1, 2, 3, 4, 5, 6, 13, 20, 131]
    options = {"compiler": "inductor", "rewrites": ("pack_linears",), "precision": precision}
    path = captured(model, {"x": torch.randn(3, 70)}, buckets=buckets, **options)
    rtol, atol = (1e-4, 1e-5) if precision == "fp32" else (0.02, 0.05)
    with Runtime.load(path) as runtime, torch.no_grad():
        names = {name for s in runtime.manifest.buckets[-1].segments for name in s.inputs}
        assert sum(name.startswith("packed:") for name in names) == len(model.layers)
        for rows in buckets:
            x = torch.randn(rows, 70)
            x[-1, 0] = float("nan")  # and stays that behind a ReLU
            got = runtime.run({"x": x.numpy()})["output"]
            np.testing.assert_allclose(got, model(x).numpy(), rtol=rtol, atol=atol)
