"""What inductor writes before it is read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._inductor import lowering

from recreplay.capture.compilers.realised_copies import realise_copies


class Domains(nn.Module):
    """A layer for each domain, over features that lie one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(9, 16))
        self.weights = nn.Parameter(torch.ones(3, 64, 32))

    def forward(self, ids: Tensor, domain: Tensor) -> Tensor:
        rows = self.table[ids].view(4, 8, 16).transpose(0, 1).contiguous().view(8, 1, 64)
        return torch.bmm(rows, self.weights[domain])


def test_a_copy_is_made_once_and_not_in_every_loop(
    written: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = torch.ops.aten.clone.default
    monkeypatch.setitem(lowering.lowerings, clone, lowering.lowerings[clone])  # put back
    examples = (torch.zeros(32, dtype=torch.int64), torch.zeros(8, dtype=torch.int64))
    _, usual = written(Domains(), *examples)
    realise_copies()
    _, ours = written(Domains(), *examples)
    assert usual.count("div_floor_integer") > 0  # of a loop over all columns
    assert ours.count("div_floor_integer") == 0
