"""Linear layers over copies of their weights, packed or turned: where they are, that they compute
the same, and that the copies of a refreshed weight are made again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recreplay.capture.ingest import ingest
from recreplay.capture.rewrites.pack_linears import pack_linears
from recreplay.capture.rewrites.turn_linears import turn_linears
from recreplay.capture.specialise import Program, specialise
from recreplay.runtime import Runtime

Capture = Callable[..., Path]
aten = torch.ops.aten
PACKED = torch.ops.mkldnn._linear_pointwise.default

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
    reason="this torch is built without oneDNN",
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


def packed(model: nn.Module, example: dict[str, Tensor], bucket: int) -> Program:
    made = specialise(ingest(model.eval(), example), bucket)
    pack_linears(made)
    return made


def calls(program: Program, target: object) -> list[tuple[object, ...]]:
    return [n.args for n in program.graph.nodes if n.target is target]


def test_large_layers_of_several_rows_are_packed() -> None:
    made = packed(Layers(), {"x": torch.randn(3, 96)}, 8)
    first, second = calls(made, PACKED)
    assert [first[3], second[3]] == ["relu", "none"]  # a ReLU whose input is an output stays
    assert second[2] is None
    assert [str(args[1].target) for args in (first, second)] == [  # type: ignore[attr-defined]
        "packed:first.weight",
        "packed:second.weight",
    ]
    assert len(calls(made, aten.linear.default)) == 1  # 128 to 2 is too small
    assert len(calls(made, aten.relu.default)) == 1


def test_one_row_reads_weights_as_they_are() -> None:
    made = packed(Layers(), {"x": torch.randn(3, 96)}, 1)
    assert calls(made, PACKED) == []


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


@pytest.mark.parametrize(
    "compiler", ["eager", pytest.param("inductor", marks=pytest.mark.inductor)]
)
def test_scores_and_refreshed_scores(captured: Capture, compiler: str) -> None:
    model = Layers().eval()
    path = captured(model, {"x": torch.randn(3, 96)}, buckets=[1, 4, 8], compiler=compiler)
    with Runtime.load(path, lanes=2) as runtime, torch.no_grad():
        assert "packed:first.weight" in {
            name for s in runtime.manifest.buckets[-1].segments for name in s.inputs
        }
        assert "turned:last.weight" in {
            name for s in runtime.manifest.buckets[-1].segments for name in s.inputs
        }
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
