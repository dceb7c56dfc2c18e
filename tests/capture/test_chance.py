"""Layers that may draw random numbers, and do not in eval mode, are captured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from recreplay.runtime import Runtime
from recreplay.runtime.errors import UnsupportedModelError

Capture = Callable[..., Path]


class Sequence(nn.Module):
    """A history `[B, L, 8]`, read by a layer of torch's."""

    def __init__(self, layer: nn.Module, read: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.read = layer, read

    def forward(self, history: Tensor) -> Tensor:
        return self.read(self.layer, history)


def attend(layer: nn.Module, x: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, Tensor], Any]]] = {
    "gru": (lambda: nn.GRU(8, 6, batch_first=True), lambda layer, x: layer(x)[0]),
    "lstm": (
        lambda: nn.LSTM(8, 6, 2, batch_first=True, dropout=0.2, bidirectional=True),
        lambda layer, x: layer(x)[1][0].transpose(0, 1),
    ),
    "rnn": (lambda: nn.RNN(8, 6, batch_first=True), lambda layer, x: layer(x)[0]),
    "attention": (
        lambda: nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True),
        lambda layer, x: layer(x, x, x, need_weights=False)[0],
    ),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        lambda layer, x: layer(x),
    ),
    "scaled products": (nn.Identity, attend),
}


@pytest.mark.parametrize("kind", KINDS)
def test_layers_in_eval_mode_are_captured(captured: Capture, kind: str) -> None:
    torch.manual_seed(5)
    make, read = KINDS[kind]
    model = Sequence(make(), read).eval()
    history = torch.randn(7, 5, 8)
    path = captured(model, {"history": history}, buckets=[1, 4])
    with Runtime.load(path) as runtime, torch.inference_mode():
        for rows in (1, 3, 7):
            got = runtime.run({"history": history[:rows]})["output"]
            want = model(history[:rows]).numpy()
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.inductor
def test_a_compiled_recurrent_layer(captured: Capture) -> None:
    torch.manual_seed(5)
    model = Sequence(*(part() if i == 0 else part for i, part in enumerate(KINDS["gru"]))).eval()
    history = torch.randn(3, 2, 8)
    path = captured(model, {"history": history}, buckets=[4], compiler="inductor")
    with Runtime.load(path) as runtime, torch.inference_mode():
        got = runtime.run({"history": history})["output"]
        np.testing.assert_allclose(got, model(history).numpy(), rtol=1e-4, atol=1e-5)


def recur(layer: Any, x: Tensor) -> Tensor:
    """As a layer in training mode does."""
    start = torch.zeros(1, x.shape[0], 6)
    return torch.gru(x, start, layer._flat_weights, True, 1, 0.2, True, False, True)[0]


@pytest.mark.parametrize(
    ("draw", "operator"),
    [
        (recur, r"aten\.gru\.input"),
        (lambda layer, x: functional.dropout(x, 0.5, training=True), r"aten\.native_dropout"),
        (
            lambda layer, x: functional.scaled_dot_product_attention(x, x, x, dropout_p=0.1),
            r"aten\.scaled_dot_product_attention",
        ),
        (lambda layer, x: x + torch.rand_like(x), r"aten\.rand_like"),
    ],
)
def test_what_draws_whatever_the_mode_is_refused(
    captured: Capture, draw: Callable[[Any, Tensor], Any], operator: str
) -> None:
    with pytest.raises(
        UnsupportedModelError, match=rf"^operator {operator}.* draws random numbers"
    ):
        captured(Sequence(nn.GRU(8, 6), draw), {"history": torch.randn(4, 5, 8)})
