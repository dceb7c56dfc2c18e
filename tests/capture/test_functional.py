"""Which exported programs are taken as they are, and which are decomposed first."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from recreplay.capture.functional import functional
from recreplay.capture.ingest import ingest
from recreplay.models import mt_wide_deep, ncf, streamrec, two_tower, wide_deep


class Calls(nn.Module):
    """What a test says, with a buffer to write to."""

    def __init__(self, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.call = call
        self.register_buffer("kept", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def operators(program: ExportedProgram) -> list[str]:
    graph = program.graph
    graph.eliminate_dead_code()
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("make", [streamrec, mt_wide_deep, wide_deep, ncf, two_tower])
def test_what_is_left_as_it_is_would_not_have_changed(make: Callable[..., nn.Module]) -> None:
    size = {"features": 3} if make is streamrec else {}
    model = make(rows_scale=0.001, **size).eval()
    with patch.object(ExportedProgram, "run_decompositions") as trace:
        program = ingest(model, model.example_inputs(4)).exported  # type: ignore[operator]
    assert not trace.called
    assert operators(program) == operators(program.run_decompositions({}))


@pytest.mark.parametrize(
    ("call", "gone"),
    [
        (lambda m, x: x.clone().add_(1), "add_"),
        (lambda m, x: x.reshape(-1, 2).sum(1).reshape(-1, 2), "reshape"),
        (lambda m, x: nn.functional.dropout(x, training=m.training), "dropout"),
        (lambda m, x: nn.functional.batch_norm(x, m.kept, m.kept), "aten.batch_norm."),
        (lambda m, x: x * torch.tensor([1.0, 2.0, 3.0, 4.0]), "detach_"),
    ],
)
def test_writes_and_what_stands_for_others_are_decomposed(
    call: Callable[..., Tensor], gone: str
) -> None:
    batch = {0: Dim("batch", min=1)}
    program = export(Calls(call).eval(), (torch.randn(4, 4),), dynamic_shapes=(batch,))
    assert any(gone in operator for operator in operators(program))
    made = functional(program)
    assert not any(gone in operator for operator in operators(made))
    x = torch.randn(6, 4)
    torch.testing.assert_close(made.module()(x), program.module()(x))
