"""The model's copy on a device, which peers and eager share."""

from __future__ import annotations

import torch
from torch import nn

from recreplay.models import mt_wide_deep
from recreplay.tools.bench.eager import on_device


class Tied(nn.Module):
    """One weight under two names, a buffer, and a tensor that is neither."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("steps", torch.arange(3))
        self.plain = torch.ones(2)


def test_weights_and_buffers_move_and_the_model_stays() -> None:
    model = Tied()
    copied = on_device(model, torch.device("meta"))
    assert isinstance(copied, Tied)
    assert copied.second.weight is copied.first.weight
    assert all(tensor.is_meta for tensor in copied.state_dict().values())
    assert copied.plain is not model.plain
    assert not any(tensor.is_meta for tensor in model.state_dict().values())


def test_models_have_no_gradients_there_either() -> None:
    copied = on_device(mt_wide_deep(rows_scale=1e-3), torch.device("meta"))
    assert not copied.training
    assert not any(weight.requires_grad for weight in copied.parameters())
