"""Cells of recurrent layers are linear layers and what follows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recreplay.capture.ingest import ingest
from recreplay.capture.specialise import specialise
from recreplay.runtime import Runtime

aten = torch.ops.aten


class Steps(nn.Module):
    """Three steps of a cell over `x` `[B, 3, 5]`."""

    def __init__(self, cell: Any, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.cell = cell(5, 7, **options)
        self.with_cells = isinstance(self.cell, nn.LSTMCell)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        state: Any = x.new_zeros(x.shape[0], 7)
        state = (state, state + 1) if self.with_cells else state
        for step in range(3):
            state = self.cell(x[:, step], state)
        return dict(zip("hc", state if self.with_cells else [state], strict=False))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cell", [nn.GRUCell, nn.LSTMCell, nn.RNNCell])
def test_cells_are_layers(captured: Callable[..., Path], cell: Any, bias: bool) -> None:
    model, x = Steps(cell, bias=bias).eval(), torch.randn(9, 3, 5)
    if cell is not nn.RNNCell:
        program = specialise(ingest(model, {"x": x}), 4)
        targets = [n.target for n in program.graph.nodes if n.op == "call_function"]
        assert targets.count(aten.linear.default) == 6
        assert not {aten.gru_cell.default, aten.lstm_cell.default} & set(targets)
    with (
        Runtime.load(captured(model, {"x": x}, buckets=[1, 4])) as runtime,
        torch.no_grad(),
    ):
        for rows in (1, 3, 9):
            got = runtime.run({"x": x[:rows]})
            for name, want in model(x[:rows]).items():
                np.testing.assert_allclose(got[name], want.numpy(), rtol=1e-5, atol=1e-6)
