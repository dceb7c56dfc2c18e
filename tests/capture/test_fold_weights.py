"""What a model computes of its weights alone is made once, and again when one is written."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from recreplay.capture import capture
from recreplay.capture.ingest import ingest
from recreplay.capture.program import Program
from recreplay.capture.rewrites.stack_branches import plan_weight_stacks, stack_branches
from recreplay.capture.specialise import specialise
from recreplay.capture.views import base
from recreplay.runtime import Runtime
from recreplay.runtime.artifact import open_artifact
from recreplay.runtime.errors import ArtifactCorruptError, RefreshError
from recreplay.tools.describe import describe

Capture = Callable[..., Path]
aten = torch.ops.aten


class Normalised(nn.Module):
    """Layers with a normalisation behind them, one of them with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.second, self.plain = nn.Linear(8, 4, bias=False), nn.BatchNorm1d(4, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.plain(self.second(self.norm(self.first(x)).relu()))
        return found


class Adapted(nn.Module):
    """A sum of low rank beside a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 6))
        self.down, self.up = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + 0.5 * self.up @ self.down)


class Gated(nn.Module):
    """Weights that are a function of weights, one of them a single number."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.share = nn.Parameter(torch.randn(6)), nn.Parameter(torch.tensor(0.3))
        self.layer = parametrizations.weight_norm(nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x * self.gate.softmax(0)) * self.share.sigmoid()
        return found


class Placed(nn.Module):
    """Positions that are looked up, and a relative bias in the order of pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.position, self.bias = nn.Embedding(9, 6), nn.Embedding(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        items = x.unsqueeze(1) + self.position(torch.arange(3))
        ahead = torch.arange(3)[:, None] - torch.arange(3)[None, :]
        scores = items @ items.transpose(1, 2) + self.bias(ahead.clamp(-1, 1) + 1).squeeze(-1)
        return (scores.softmax(-1) @ items).flatten(1)


class Cosine(nn.Module):
    """Rows of unit length, of a table that is looked up as well."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(20, 6)

    def forward(self, x: Tensor) -> Tensor:
        own: Tensor = self.items((x[:, 0].abs() * 3).long().clamp(max=19))
        return (x + own) @ F.normalize(self.items.weight, dim=-1).t()


class Cast(nn.Module):
    """Exported under autocast: weights are cast for each request."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found: Tensor = self.layer(x)
        return found.float()


class Filtered(nn.Module):
    """A filter of frequencies, as FMLP-Rec has it, made of complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(4, 2))
        self.phase = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        turned = torch.view_as_complex(self.filter) * (self.phase * (0.5 + 1j))
        return torch.fft.irfft(torch.fft.rfft(x, dim=1) * turned, n=6, dim=1)


class Parts(nn.Module):
    """Matrices of one parameter, in two orders, and layers that lie in one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = nn.Parameter(torch.randn(2, 6, 6))
        self.inward = nn.Parameter(torch.randn(2, 6, 4))
        self.seen = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        crossed = x
        for i in range(2):
            crossed = x * torch.matmul(self.kernels[i], crossed.unsqueeze(2)).squeeze(2) + crossed
        query, key = (crossed @ self.inward[i] for i in range(2))
        items = torch.stack([query, key], 1)
        found: Tensor = self.seen(query.unsqueeze(1), items, items, need_weights=False)[0]
        return found.squeeze(1)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "normalised": Normalised,
    "adapted": Adapted,
    "gated": Gated,
    "placed": Placed,
    "cosine": Cosine,
    "cast": Cast,
    "parts": Parts,
    "filtered": Filtered,
}


def trained(name: str, seed: int = 0) -> nn.Module:
    """A model whose every weight and statistic is drawn."""
    torch.manual_seed(seed)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                value.uniform_(0.2, 2) if "var" in key else value.normal_()
    return model


def specialised(model: nn.Module, bucket: int = 4, folds: bool = True) -> Program:
    return specialise(ingest(model, {"x": torch.randn(3, 6)}), bucket, folds)


def operators(program: Program) -> list[object]:
    return [n.target for n in program.graph.nodes if n.op == "call_function"]


def agree(runtime: Runtime, model: nn.Module, x: Tensor, tolerance: float) -> None:
    for rows in (1, 3, 5):
        with torch.no_grad():
            want = model(x[:rows]).numpy()
        got = runtime.run({"x": x[:rows]})["output"]
        scale = max(float(np.abs(want).max()), 1e-3)
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_that_is_written_is_followed(name: str, captured: Capture) -> None:
    model, x = trained(name), torch.randn(5, 6)
    tolerance = 0.02 if name == "cast" else 1e-4
    with Runtime.load(captured(model, {"x": x}, buckets=[1, 4])) as runtime:
        agree(runtime, model, x, tolerance)
        other = trained(name, seed=1)
        for key, value in other.state_dict().items():  # one by one
            if key in runtime.weights():
                runtime.update_weights({key: value})
                model.load_state_dict({**model.state_dict(), key: value})
                agree(runtime, model, x, tolerance)
        agree(runtime, other, x, tolerance)
        again = trained(name, seed=2)
        runtime.update_weights(again.state_dict())  # all at once
        agree(runtime, again, x, tolerance)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("normalised", [aten.linear.default, aten.relu.default, aten.linear.default]),
        ("adapted", [aten.linear.default]),
        ("gated", [aten.mul.Tensor, aten.linear.default, aten.mul.Tensor]),
    ],
)
@pytest.mark.parametrize("bucket", [1, 4])
def test_what_is_left_for_requests(name: str, left: list[object], bucket: int) -> None:
    assert operators(specialised(trained(name), bucket)) == left
    assert len(operators(specialised(trained(name), bucket, folds=False))) > len(left)


def test_rows_of_a_table_that_another_is_made_of(captured: Capture) -> None:
    model, x = trained("cosine"), torch.randn(5, 6)
    with Runtime.load(captured(model, {"x": x})) as runtime:
        ids, rows = torch.tensor([3, 0]), torch.randn(2, 6)
        runtime.update_rows("items.weight", ids, rows)
        with torch.no_grad():
            model.items.weight[ids] = rows  # type: ignore[index,union-attr]
        agree(runtime, model, x, 1e-4)


def test_what_is_made_is_no_weight_of_the_model(captured: Capture) -> None:
    model, x = trained("normalised"), torch.randn(5, 6)
    with Runtime.load(captured(model, {"x": x})) as runtime:
        assert set(runtime.weights()) == {
            key for key, value in model.state_dict().items() if value.is_floating_point()
        }
        made = next(name for name in specialised(model).made if name.startswith("first.weight"))
        with pytest.raises(RefreshError, match=r"the captured model has no weight 'first\.weight#"):
            runtime.update_weights({made: torch.zeros(8, 6)})


def test_what_a_bucket_says_the_size_of_stays() -> None:
    class Ranked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Parameter(torch.randn(1, 6))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.place.expand(x.shape[0], 6).exp()

    assert not specialised(Ranked().eval()).made


def test_what_takes_more_memory_than_a_cache_and_its_weights_stays() -> None:
    class Pairs(nn.Module):
        def __init__(self, items: int) -> None:
            super().__init__()
            self.items = nn.Parameter(torch.randn(items, 6))

        def forward(self, x: Tensor) -> Tensor:
            gaps = self.items.unsqueeze(0) - self.items.unsqueeze(1)
            return x + gaps.abs().sum((0, 1))

    few, many = (specialised(Pairs(n).eval()) for n in (30, 600))
    assert operators(few) == [aten.add.Tensor]
    assert not many.made


def test_nothing_may_be_made_of_nothing(captured: Capture) -> None:
    """Units that a configuration has none of."""

    class Without(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.units = nn.Parameter(torch.randn(0, 6))
            self.scale = nn.Parameter(torch.randn(6))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x @ (self.units * self.scale).t()], 1)

    model, x = Without().eval(), torch.randn(5, 6)
    path = captured(model, {"x": x})
    assert describe(path, open_artifact(path).manifest)["memory"]["made_bytes"] == 0
    with Runtime.load(path) as runtime:
        runtime.update_weights(model.state_dict())
        agree(runtime, model, x, 0)


def test_what_cannot_be_made_is_not_written(captured: Capture) -> None:
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Embedding(9, 6)
            self.register_buffer("at", torch.tensor([4]))

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = x + self.position(self.at)
            return found

    model, x = Placed().eval(), torch.randn(5, 6)
    with Runtime.load(captured(model, {"x": x})) as runtime:
        message = (
            r"which is made of position\.weight, at: index out of range.*; nothing was written"
        )
        with pytest.raises(RefreshError, match=message):
            runtime.update_weights({"at": torch.tensor([9])})
        agree(runtime, model, x, 1e-5)
        runtime.update_weights({"at": torch.tensor([8])})
        model.load_state_dict({**model.state_dict(), "at": torch.tensor([8])})
        agree(runtime, model, x, 1e-5)


def test_parts_that_are_multiplied_with_are_weights_of_their_own() -> None:
    program = specialised(trained("parts"))
    layers = program.graph.find_nodes(op="call_function", target=aten.linear.default)
    weights = [base(layer.args[1]) for layer in layers]
    assert len(weights) == 7
    assert all(
        w.meta["val"].numel() == layer.args[1].meta["val"].numel()
        for w, layer in zip(weights, layers, strict=True)
    )


def test_rows_of_what_is_looked_up_are_not_doubled() -> None:
    class Scored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items = nn.Embedding(20, 6, padding_idx=0)

        def forward(self, x: Tensor) -> Tensor:
            own: Tensor = self.items((x[:, 0].abs() * 3).long().clamp(max=19))
            return (x + own) @ self.items.weight[1:].t()

    assert not specialised(Scored().eval()).made


@pytest.mark.parametrize(("name", "left"), [("mmoe", 6), ("dcn_v2", 6), ("catalogue", 3)])
def test_models_as_teams_write_them(name: str, left: int, captured: Capture) -> None:
    """Of the examples: every product is a layer or a batch of layers over stored weights."""
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples/team_models.py"))
    model = example[name]()
    program = specialise(ingest(model, model.example_inputs(4)), 4)
    stack_branches(program, plan_weight_stacks(program))
    layers = [aten.linear.default, aten.baddbmm.default, aten.bmm.default]
    products = [n for n in operators(program) if n in layers]
    assert len(products) == left
    assert aten.matmul.default not in operators(program)
    request = model.example_inputs(3, seed=1)
    with Runtime.load(captured(model, buckets=[4])) as runtime, torch.no_grad():
        got = runtime.run(request)
        want = model(list(request.values())) if name != "catalogue" else model(**request)
    for key, value in (want if isinstance(want, dict) else {"output": want}).items():
        np.testing.assert_allclose(got[key], value.numpy(), rtol=1e-4, atol=1e-5)


def test_branches_over_made_weights_are_stacked(captured: Capture) -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleList(Adapted() for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([head(x).relu() for head in self.heads], 1)

    torch.manual_seed(0)
    model, other, x = Heads().eval(), Heads().eval(), torch.randn(5, 6)
    with Runtime.load(captured(model, {"x": x})) as runtime:
        stacks = {view.storage for view in runtime.manifest.tables.values()}
        assert len(stacks) == 1
        agree(runtime, model, x, 1e-4)
        runtime.update_weights(other.state_dict())
        agree(runtime, other, x, 1e-4)


@pytest.mark.inductor
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_packed_and_lowered(precision: str, captured: Capture) -> None:
    """Blocks of made weights, in bfloat16 too, follow what they are made of."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.normalised, self.adapted = Normalised(), Adapted()

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.normalised(x), self.adapted(x)], 1)

    def drawn(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = Both().eval()
        model.normalised.load_state_dict(trained("normalised", seed).state_dict())
        return model

    model, other, x = drawn(0), drawn(1), torch.randn(5, 6)
    options: dict[str, Any] = {"buckets": [1, 4], "precision": precision, "compiler": "inductor"}
    if precision != "fp32":
        options |= {"buckets": [4], "max_error": 0.05}
    tolerance = 1e-4 if precision == "fp32" else 0.05
    with Runtime.load(captured(model, {"x": x}, **options)) as runtime:
        agree(runtime, model, x, tolerance)
        runtime.update_weights(other.state_dict())
        agree(runtime, other, x, tolerance)


def test_a_table_in_int8_is_not_what_others_are_made_of(captured: Capture) -> None:
    class Scored(Cosine):
        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            return (x + self.items(ids)) @ F.normalize(self.items.weight, dim=-1).t()

    torch.manual_seed(0)
    model, x, ids = Scored().eval(), torch.randn(5, 6), torch.randint(0, 20, (5,))
    messages: list[str] = []
    path = captured(model, {"x": x, "ids": ids}, table_precision="int8", progress=messages.append)
    assert any("table items.weight stays in fp32" in message for message in messages)
    with Runtime.load(path) as runtime, torch.no_grad():
        got = runtime.run({"x": x, "ids": ids})["output"]
        np.testing.assert_allclose(got, model(x, ids), rtol=1e-4, atol=1e-5)


def test_without_the_rewrite_nothing_is_made(captured: Capture) -> None:
    model, x = trained("normalised"), torch.randn(5, 6)
    path = captured(model, {"x": x}, rewrites=[])
    assert not (path / "made.json").exists()
    with Runtime.load(path) as runtime:
        agree(runtime, model, x, 1e-4)


def test_a_stored_recipe_that_is_none(tmp_path: Path) -> None:
    from recreplay.runtime.made_weights import read_made

    path = tmp_path / "made.json"
    path.write_text(json.dumps({"weight": 3}))
    with pytest.raises(ArtifactCorruptError, match="does not say how weights are made"):
        read_made(path)


def test_updates_side_by_side_are_both_in_what_is_made(tmp_path: Path) -> None:
    from threading import Thread

    model, x = trained("adapted"), torch.randn(5, 6)
    capture(model, {"x": x}, out=tmp_path / "m.rr", buckets=[4], compiler="eager")
    with Runtime.load(tmp_path / "m.rr") as runtime:
        for seed in range(20):
            state = trained("adapted", seed).state_dict()
            writers = [
                Thread(target=runtime.update_weights, args=({key: value},))
                for key, value in state.items()
            ]
            for writer in writers:
                writer.start()
            for writer in writers:
                writer.join()
            model.load_state_dict(state)
            agree(runtime, model, x, 1e-4)
