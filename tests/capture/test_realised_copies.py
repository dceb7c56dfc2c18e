"""What inductor writes before it is read."""

from __future__ import annotations

from typing import Any

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


class Stop(Exception):
    pass


def test_a_copy_is_made_once_and_not_in_every_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.codecache import AotCodeCompiler

    clone = torch.ops.aten.clone.default
    monkeypatch.setitem(lowering.lowerings, clone, lowering.lowerings[clone])  # put back
    found: list[str] = []

    def catch(graph: Any, wrapper_code: str, kernel_code: str, *others: Any, **more: Any) -> Any:
        found.append(kernel_code)
        raise Stop("caught")

    monkeypatch.setattr(AotCodeCompiler, "compile", catch)
    examples = (torch.zeros(32, dtype=torch.int64), torch.zeros(8, dtype=torch.int64))
    exported = torch.export.export(Domains().eval(), examples)
    for change in (lambda: None, realise_copies):
        change()
        with pytest.raises(Exception, match="caught"):
            torch._inductor.aoti_compile_and_package(exported)
    divided = [text.count("div_floor_integer") for text in found]  # of a loop over all columns
    assert divided[0] > 0
    assert divided[1] == 0
