"""Hyperbolic tangents of compiled segments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recreplay.capture.compilers.tangents import tangents_as_ratios
from recreplay.runtime import Runtime


class Tangents(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


def test_vectors_of_floats_are_ratios(
    written: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor.codegen.cpp import CppVecOverrides

    # Put back when the test ends.
    monkeypatch.setattr(CppVecOverrides, "tanh", staticmethod(CppVecOverrides.tanh))
    usual = written(Tangents(), torch.zeros(64))[1]
    tangents_as_ratios()
    ours = written(Tangents(), torch.zeros(64))[1]
    doubles = written(Tangents(), torch.zeros(64, dtype=torch.float64))[1]
    assert [".tanh()" in text for text in (usual, ours, doubles)] == [True, False, True]


@pytest.mark.inductor
def test_they_are_tangents(captured: Callable[..., Path]) -> None:
    """As close as floats are, next to 0 and where they saturate, with NaN and infinite ones."""
    path = captured(
        Tangents().eval(), {"x": torch.randn(4, 200)}, buckets=[64], compiler="inductor"
    )
    with Runtime.load(path) as runtime:
        for size in (1e-30, 1e-4, 1.0, 10.0, 1e30):
            x = torch.randn(64, 200) * size
            want = torch.tanh(x.double()).numpy()
            np.testing.assert_allclose(runtime.run({"x": x})["output"], want, rtol=1e-6)
        odd = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -20.0]).repeat(64, 40)
        got = runtime.run({"x": odd})["output"]
        np.testing.assert_array_equal(got, torch.tanh(odd).numpy())
