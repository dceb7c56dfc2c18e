"""What is exchanged one by one is what torch makes of it, and everything else is left to torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.nn import functional

from recreplay.capture.functional import functional as as_functional
from recreplay.capture.ingest import ingest
from recreplay.capture.stand_ins import exchange_stand_ins
from recreplay.models import MODELS

Call = Callable[[Tensor], Tensor]


class Calls(nn.Module):
    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


def exported(call: Call) -> ExportedProgram:
    """`call` of a tensor `[batch, 4, 6]`."""
    example = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(3))
    batch = {0: Dim("batch", min=1)}
    return export(Calls(call).eval(), (example,), dynamic_shapes=(batch,))


def operators(program: ExportedProgram) -> list[str]:
    """Those on tensors, in order of their names."""
    program.graph.eliminate_dead_code()
    called = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    return sorted(name for name in called if name.startswith("aten.") and "sym_" not in name)


KNOWN: dict[str, Call] = {
    "reshaped": lambda x: x.reshape(-1, 24).sin(),
    "reshaped with the batch inside": lambda x: x.reshape(-1, 6).sin(),
    "reshaped by its own size": lambda x: x.reshape(x.shape[0], 2, -1).sin(),
    "reshaped rows that do not adjoin": lambda x: x.transpose(1, 2).reshape(-1, 24),
    "flattened rows that do not adjoin": lambda x: x.transpose(0, 1).flatten(0, 1).cos(),
    "dropped": lambda x: functional.dropout(x, 0.5, training=False).cos(),
    "a constant": lambda x: x * torch.tensor([1.0, 2, 3, 4, 5, 6]),
    "narrow": lambda x: x.narrow(1, 1, 2).cos() + x.narrow(2, -4, 3).sum(),
    "turned": lambda x: x[:, 0].T.cos().mT + x.mT.cos().sum(),
    "flattened rows": lambda x: x.flatten(1),
    "flattened in the middle": lambda x: x.unsqueeze(1).flatten(-2, -1).cos(),
    "flattened nothing": lambda x: x.flatten(1, 1).cos(),
    "the batch flattened": lambda x: x.flatten(0, 1).cos(),
    "divided": lambda x: x.unflatten(1, (2, -1)).cos(),
    "divided rows": lambda x: x.view(-1, 6).unflatten(0, (-1, 4)).cos(),
    "normalised": lambda x: functional.batch_norm(x, torch.ones(4), torch.full((4,), 2.0)),
    "beside itself": lambda x: x.to(x.device, torch.float64).cos() + x.to("cpu").sin(),
    "laid out": lambda x: x.transpose(1, 2).contiguous().cos() + x.cos().contiguous().sum(),
    "copied": lambda x: x.to(torch.float32, copy=True),
    "copied beside itself": lambda x: x.to("cpu", torch.float32, copy=True),
    "of another dtype": lambda x: x.to(torch.float64) + 1,
    "of its own dtype": lambda x: x.to(torch.float32) + 1,
    "cut evenly": lambda x: x.chunk(2, dim=1)[1],
    "cut unevenly": lambda x: torch.cat([c.sin() for c in x.chunk(4, dim=-1)], dim=-1),
    "cut into fewer": lambda x: x.chunk(9, 1)[3] * 2,
    "expanded": lambda x: x[:, :1].expand_as(x) * x,
    "expanded to more dimensions": lambda x: x[0, 0].expand_as(x) * x,
}
UNKNOWN: dict[str, Call] = {
    "normalised by what is given": lambda x: functional.batch_norm(x, None, None, training=True),
    "of another layout": lambda x: x[..., None].to(
        torch.float64, memory_format=torch.channels_last
    ),
}


@pytest.mark.parametrize("call", KNOWN.values(), ids=KNOWN)
def test_known_ones_are_exchanged_for_what_torch_makes_of_them(call: Call) -> None:
    program = exported(call)
    wanted = operators(program.run_decompositions({}))
    exchange_stand_ins(program.graph)
    made = as_functional(program)
    assert made is program  # nothing was left to trace
    assert operators(made) == wanted
    x = torch.randn(5, 4, 6)
    torch.testing.assert_close(made.module()(x), call(x), rtol=0, atol=0)


@pytest.mark.parametrize("call", UNKNOWN.values(), ids=UNKNOWN)
def test_others_are_left(call: Call) -> None:
    program = exported(call)
    before = operators(program)
    exchange_stand_ins(program.graph)
    assert operators(program) == before
    made = as_functional(program)
    assert made is not program
    x = torch.randn(5, 4, 6)
    torch.testing.assert_close(made.module()(x), call(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["dlrm_rmc1", "din", "rm_small"])
def test_models_that_use_them_are_not_traced_again(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("traced again")

    monkeypatch.setattr(ExportedProgram, "run_decompositions", never)
    model = MODELS[name].factory(rows_scale=0.001)
    ingest(model, model.example_inputs(4))
