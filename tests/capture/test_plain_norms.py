"""Batch normalisation is a product and a sum, over which branches are stacked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recreplay.capture.ingest import ingest
from recreplay.capture.program import Program
from recreplay.capture.rewrites.stack_branches import plan_weight_stacks, stack_branches
from recreplay.capture.specialise import specialise
from recreplay.runtime import Runtime

Capture = Callable[..., Path]
aten = torch.ops.aten
NORM = aten._native_batch_norm_legit_no_training.default


def trained(model: nn.Module) -> nn.Module:
    """As if it had seen batches: no statistic or factor is what it was made as."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.1, 3)  # type: ignore[union-attr]
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.eval()


class Experts(nn.Module):
    """Layers, each normalised, whose results a gate adds up."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
            for _ in range(4)
        )
        self.gate = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        found = torch.stack([expert(x) for expert in self.experts], 1)
        return (self.gate(x).softmax(-1).unsqueeze(-1) * found).sum(1)


def targets(program: Program) -> list[object]:
    return [n.target for n in program.graph.nodes if n.op == "call_function"]


def test_experts_that_are_normalised_run_as_one(captured: Capture) -> None:
    torch.manual_seed(0)
    model, x = trained(Experts()), torch.randn(5, 6)
    program = specialise(ingest(model, {"x": x}), 4)
    stack_branches(program, plan_weight_stacks(program))
    assert targets(program).count(aten.baddbmm.default) == 2
    assert targets(program).count(aten.linear.default) == 1  # the gate's
    retrained = trained(Experts())
    with Runtime.load(captured(model, {"x": x}, buckets=[1, 4])) as runtime, torch.no_grad():
        for current in (model, retrained):
            runtime.update_weights(current.state_dict())
            for rows in (1, 3, 5):
                got = runtime.run({"x": x[:rows]})["output"]
                np.testing.assert_allclose(got, current(x[:rows]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("norm", "item"),
    [
        (nn.BatchNorm1d(4), ()),
        (nn.BatchNorm1d(4, affine=False), ()),
        (nn.BatchNorm1d(4, eps=0.5), (3,)),
        (nn.BatchNorm2d(4), (3, 2)),
        (nn.BatchNorm1d(4, dtype=torch.float64), (3,)),
    ],
    ids=["rows", "no factors", "items", "planes", "float64"],
)
def test_every_shape_of_it_is_a_product_and_a_sum(
    norm: nn.Module, item: tuple[int, ...], captured: Capture
) -> None:
    torch.manual_seed(0)
    dtype = next(norm.buffers()).dtype
    model, x = trained(norm), torch.randn(5, 4, *item, dtype=dtype)
    assert NORM not in targets(specialise(ingest(model, {"input": x}), 4))
    with Runtime.load(captured(model, {"input": x})) as runtime, torch.no_grad():
        got = runtime.run({"input": x[:3]})["output"]
        want = model(x[:3]).numpy()
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_items_of_another_type_than_their_statistics_are_left_to_torch(captured: Capture) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.norm(x.bfloat16()).float()
            return found

    torch.manual_seed(0)
    model, x = trained(Half()), torch.randn(5, 4)
    assert NORM in targets(specialise(ingest(model, {"x": x}), 4))
    with Runtime.load(captured(model, {"x": x})) as runtime, torch.no_grad():
        np.testing.assert_allclose(runtime.run({"x": x})["output"], model(x), rtol=1e-4, atol=1e-5)


class OfOneRow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm1d(3, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.unflatten(1, (3, 4))).flatten(1)


def test_the_statistics_of_each_row_alone_are_captured(captured: Capture) -> None:
    torch.manual_seed(0)
    model, x = OfOneRow().eval(), torch.randn(5, 12)
    with Runtime.load(captured(model, {"x": x}, buckets=(4,))) as runtime, torch.no_grad():
        np.testing.assert_allclose(runtime.run({"x": x})["output"], model(x), 1e-5, 1e-6)
