"""GRU and LSTM layers by functions of ours: which, and that they are torch's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recreplay.capture.ingest import ingest
from recreplay.capture.rewrites.recurrent import recurrent
from recreplay.capture.specialise import specialise
from recreplay.runtime import Runtime
from recreplay.runtime.aten import GRU, LSTM
from recreplay.runtime.graph import read_graph

Capture = Callable[..., Path]
KINDS: dict[str, Any] = {GRU: nn.GRU, LSTM: nn.LSTM}


class Layers(nn.Module):
    """Layers of `options` over `x` `[B, 7, 5]`, which begin with a state made of it, or with 0."""

    def __init__(self, kind: str, hidden: int, begins: bool = False, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = options.get("batch_first", True)
        self.begins = begins
        self.layers = KINDS[kind](5, hidden, **{"batch_first": True, **options})
        self.states = self.layers.num_layers * (2 if self.layers.bidirectional else 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        given = x if self.first else x.transpose(0, 1)
        begin = x.new_zeros(self.states, x.shape[0], self.layers.hidden_size)
        if self.begins:
            begin = begin + x.mean((1, 2)).view(1, -1, 1)
        cells = isinstance(self.layers, nn.LSTM)
        states, last = self.layers(given, (begin, begin / 2) if cells else begin)
        last = last[0] if cells else last
        states = states if self.first else states.transpose(0, 1)
        return {"states": states, "last": last.transpose(0, 1)}


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"hidden": 16},
    "begins": {"hidden": 20, "begins": True},
    "two layers": {"hidden": 33, "num_layers": 2},
    "both ways": {"hidden": 17, "bidirectional": True, "num_layers": 2},
    "no bias": {"hidden": 64, "bias": False},
    "steps first": {"hidden": 24, "batch_first": False},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_same_states(options: dict[str, Any], kind: str) -> None:
    """As a program, by what stands for the function where no package is."""
    model, x = Layers(kind, **options).eval(), torch.randn(4, 7, 5)
    program = specialise(ingest(model, {"x": x}), 4)
    recurrent(program)
    targets = [str(n.target) for n in program.graph.nodes]
    assert targets.count(kind) == model.states
    assert not {"aten.gru.input", "aten.lstm.input"} & set(targets)


@pytest.mark.parametrize(
    "model",
    [
        nn.GRU(5, 8, batch_first=True),
        nn.GRU(5, 16, batch_first=True).double(),
        nn.LSTM(5, 32, proj_size=16, batch_first=True),
    ],
    ids=["narrow", "double", "projection"],
)
def test_what_stays(model: nn.Module) -> None:
    kind = next(model.parameters()).dtype
    program = specialise(ingest(Only(model).eval(), {"x": torch.randn(4, 7, 5, dtype=kind)}), 4)
    recurrent(program)
    assert not KINDS.keys() & {str(n.target) for n in program.graph.nodes}


@pytest.mark.parametrize("rows", [2, 16])
def test_many_rows_of_wide_lstm_layers_are_left_to_torch(rows: int) -> None:
    for kind, layers in {LSTM: nn.LSTM(5, 256), GRU: nn.GRU(5, 296)}.items():
        layers.batch_first = True
        ingested = ingest(Only(layers).eval(), {"x": torch.randn(rows, 3, 5)})
        program = specialise(ingested, rows)
        recurrent(program)
        by_torch = not any(str(n.target) == kind for n in program.graph.nodes)
        assert by_torch == (kind == LSTM and rows == 16)


def test_cells_that_are_read_stay() -> None:
    class Cells(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.LSTM(5, 16, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            cells: Tensor = self.layers(x)[1][1]
            return cells.squeeze(0)

    program = specialise(ingest(Cells().eval(), {"x": torch.randn(4, 7, 5)}), 4)
    recurrent(program)
    assert not KINDS.keys() & {str(n.target) for n in program.graph.nodes}


class Only(nn.Module):
    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.layers(x)[0]
        return states


class All(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.each = nn.ModuleList(
            Layers(kind, **options) for kind in KINDS for options in OPTIONS.values()
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = [layers(x) for layers in self.each]
        return {f"{k}_{i}": v for i, one in enumerate(found) for k, v in one.items()}


@pytest.mark.inductor
def test_compiled(captured: Capture) -> None:
    """Widths that vectors do not divide, numbers of rows that are done together, values that
    saturate, small ones, threads, and weights that are refreshed."""
    model, example = All().eval(), {"x": torch.randn(3, 7, 5)}
    path = captured(model, example, buckets=[1, 16], compiler="inductor", threads=2)
    targets = [o.target for o in read_graph(path)[16].captured.operators]
    states = sum(layers.states for layers in model.each) // len(KINDS)
    assert [targets.count(kind) for kind in KINDS] == [states] * len(KINDS)
    with Runtime.load(path) as runtime, torch.no_grad():
        for scale in (1.0, 100.0, 1e-3):
            for rows in (1, 2, 7, 16):
                x = torch.randn(rows, 7, 5) * scale
                got = runtime.run({"x": x})
                for name, want in model(x).items():
                    near = 2e-6 * max(1.0, scale / 10)  # gates are of sums of such sizes
                    np.testing.assert_allclose(got[name], want.numpy(), rtol=1e-5, atol=near)
        x[2, 3, 1] = float("nan")
        got, wanted = runtime.run({"x": x}), model(x)
        for name, want in wanted.items():
            np.testing.assert_array_equal(np.isnan(got[name]), want.isnan().numpy())
        for weight in model.parameters():
            weight.mul_(1.5)
        runtime.update_weights(model.state_dict())
        x = torch.randn(5, 7, 5)
        got = runtime.run({"x": x})
        for name, want in model(x).items():
            np.testing.assert_allclose(got[name], want.numpy(), rtol=1e-5, atol=2e-6)
