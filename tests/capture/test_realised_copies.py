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


@pytest.fixture(autouse=True)
def put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for operator in (torch.ops.aten.clone.default, torch.ops.aten.index.Tensor):
        monkeypatch.setitem(lowering.lowerings, operator, lowering.lowerings[operator])


def test_a_copy_is_made_once_and_not_in_every_loop(
    written: Callable[..., tuple[str, str]],
) -> None:
    examples = (torch.zeros(32, dtype=torch.int64), torch.zeros(8, dtype=torch.int64))
    _, usual = written(Domains(), *examples)
    realise_copies()
    _, ours = written(Domains(), *examples)
    assert usual.count("div_floor_integer") > 0  # of a loop over all columns
    assert ours.count("div_floor_integer") == 0


class ByTime(nn.Module):
    """Attention's weights of eight heads, with a bias that two items have by the time between."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(20))

    def forward(self, weights: Tensor, times: Tensor) -> Tensor:
        apart = (times.unsqueeze(2) - times.unsqueeze(1)).abs().clamp(max=19)
        return weights + self.bias[apart].unsqueeze(1)


@pytest.mark.parametrize("ours", [False, True])
def test_a_number_is_looked_up_once_and_not_for_every_head(
    written: Callable[..., tuple[str, str]], ours: bool
) -> None:
    if ours:
        realise_copies()
    _, code = written(ByTime(), torch.zeros(4, 8, 32, 32), torch.zeros(4, 32, dtype=torch.int64))
    heads = code.count("static_cast<int64_t>(8L); x1+=")  # loops over them
    (check,) = [at for at, line in enumerate(code.splitlines()) if "index out of bounds" in line]
    before = "\n".join(code.splitlines()[:check])
    assert heads == 1
    assert ("static_cast<int64_t>(8L); x1+=" in before) != ours
