"""Operators that differ in their weights alone run as one, and nobody can tell from the scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recreplay.capture.ingest import ingest
from recreplay.capture.program import Program
from recreplay.capture.rewrites.inline_linears import inline_linears
from recreplay.capture.rewrites.stack_branches import plan_weight_stacks, stack_branches
from recreplay.capture.rewrites.stack_lookups import plan_stacks, stack_lookups
from recreplay.capture.specialise import specialise
from recreplay.models import mt_wide_deep, streamrec
from recreplay.runtime import Runtime
from recreplay.runtime.weights import load_tensors, with_views

Capture = Callable[..., Path]
aten = torch.ops.aten


class Branch(nn.Module):
    """Lookup, self-attention over the items, a normalisation and an interaction layer."""

    def __init__(self, rows: int, dim: int, norm: bool = True) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, dim)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()
        self.act = nn.PReLU()
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        items = self.table(ids)
        scores = self.query(items) @ self.key(items).transpose(1, 2)
        seen = torch.softmax(scores, dim=-1) @ items
        out: Tensor = self.act(self.out(self.norm(seen.mean(dim=1))))
        return out


class Branches(nn.Module):
    def __init__(self, dims: list[int], odd: tuple[int, ...] = (), shared: bool = False) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.branches = nn.ModuleList(
            Branch(20 + i, dim, norm=i not in odd) for i, dim in enumerate(dims)
        )
        if shared:
            for branch in self.branches:
                branch.query = self.branches[0].query  # type: ignore[union-attr]
        self.top = nn.Linear(sum(dims), 1)

    def forward(self, ids: list[Tensor]) -> Tensor:
        vectors = [branch(i) for branch, i in zip(self.branches, ids, strict=True)]
        scores: Tensor = self.top(torch.cat(vectors, dim=1))
        return scores


class Towers(nn.Module):
    """Tasks on one input, of which the last one has a layer more."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3), *more)
            for more in ([], [], [], [nn.Sigmoid()])
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {f"task_{i}": tower(x) for i, tower in enumerate(self.towers)}


def draw(model: Branches, batch: int) -> dict[str, Tensor]:
    tables = [branch.table for branch in model.branches]
    return {
        f"ids_{i}": torch.randint(0, t.num_embeddings, (batch, 4)) for i, t in enumerate(tables)
    }


def stacked(model: nn.Module, example: Any, bucket: int = 4) -> Program:
    made = specialise(ingest(model.eval(), example), bucket)
    stack_lookups(made, plan_stacks(made))
    stack_branches(made, plan_weight_stacks(made))
    return made


def operators(program: Program) -> Counter[Any]:
    return Counter(n.target for n in program.graph.nodes if n.op == "call_function")


def replays(path: Path, model: nn.Module, request: dict[str, Tensor], *args: Any) -> None:
    with Runtime.load(path) as runtime, torch.inference_mode():
        got = runtime.run({k: v.numpy() for k, v in request.items()})
        want = model(*args)
    for name, value in (want if isinstance(want, dict) else {"output": want}).items():
        np.testing.assert_allclose(got[name], value.numpy(), rtol=1e-4, atol=1e-5)


def test_equal_branches_become_one() -> None:
    model = Branches([8] * 5)
    found = operators(stacked(model, draw(model, 4)))
    assert found[aten.linear.default] == 1  # the trunk's
    assert found[aten.baddbmm.default] == 2  # query and key, five branches each
    assert found[aten.native_layer_norm.default] == 1
    assert found[aten.embedding.default] == 1


def test_branches_are_grouped_by_width_and_by_operators() -> None:
    model = Branches([8, 16, 8, 16, 8], odd=(4,))
    found = operators(stacked(model, draw(model, 4)))
    # Two widths of queries and keys; the branch without a norm leaves the others after them.
    assert found[aten.baddbmm.default] == 4
    assert found[aten.native_layer_norm.default] == 2


@pytest.mark.parametrize(
    "model",
    [
        Branches([8] * 4),
        Branches([8, 16, 8, 16, 8], odd=(0,)),
        Branches([4, 4, 4, 4, 4, 4], odd=(1, 4)),
        Branches([8, 8, 8], shared=True),
    ],
    ids=["alike", "two widths", "odd ones between", "one query for all"],
)
def test_scores_are_the_eager_models(captured: Capture, model: Branches) -> None:
    path = captured(model.eval(), draw(model, 4), buckets=[1, 4])
    for batch in (1, 3, 4, 9):
        request = draw(model, batch)
        replays(path, model, request, list(request.values()))


def test_towers_on_one_input_become_one_batched_product(captured: Capture) -> None:
    model, x = Towers().eval(), torch.randn(4, 8)
    found = operators(stacked(model, {"x": x}))
    assert found[aten.linear.default] == 0
    assert found[aten.baddbmm.default] == 2
    assert found[aten.relu.default] == 1
    replays(captured(model, {"x": x}), model, {"x": x}, x)


class Siamese(nn.Module):
    """Layers that two towers share, behind one of each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.own = nn.ModuleList(nn.Linear(8, 6) for _ in range(2))
        self.first, self.second = nn.Linear(6, 4), nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        towers = [self.second(self.first(own(x).relu()).tanh()) for own in self.own]
        return (towers[0] * towers[1]).sum(1)


def test_layers_that_towers_share_are_layers_of_more_rows(captured: Capture) -> None:
    model, request = Siamese().eval(), {"x": torch.randn(5, 8)}
    made = stacked(model, request)
    found = operators(made)
    assert found[aten.linear.default] == 2
    assert found[aten.tanh.default] == found[aten.baddbmm.default] == 1
    assert not {aten.mm.default, aten.addmm.default, aten.bmm.default} & found.keys()
    replays(captured(model, request), model, request, *request.values())


def test_weights_are_stored_once_and_each_can_be_told_apart(captured: Capture) -> None:
    model = Branches([8] * 3).eval()
    path = captured(model, draw(model, 4))
    with Runtime.load(path) as runtime:
        tables = runtime.manifest.tables
    stored = load_tensors(path / "weights.safetensors", torch.device("cpu"))
    weights = with_views(stored, tables)
    for name, value in model.state_dict().items():
        assert torch.equal(weights[name], value), name
        assert weights[name].data_ptr() % 64 == 0
    assert tables["branches.1.query.weight"].storage == tables["branches.0.query.weight"].storage
    assert set(stored).isdisjoint(tables)


def test_a_weight_that_two_sets_would_hold_stays_apart() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Parameter(torch.randn(4, 4)) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            first = torch.relu(x @ self.a), torch.relu(x @ self.b)
            second = torch.tanh(x @ self.b).sum(1), torch.tanh(x @ self.c).sum(1)
            return torch.cat([*first, *(s.unsqueeze(1) for s in second)], dim=1)

    made = specialise(ingest(Crossed().eval(), {"x": torch.randn(3, 4)}), 3)
    names = [name for stack in plan_weight_stacks(made) for name in stack.members]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("begin", [-9, -8, 0])
def test_cuts_that_begin_before_the_first_row(begin: int, captured: Capture) -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(F.linear(x, self.weight[begin:3]) + F.linear(x, self.weight[3:6]))

    torch.manual_seed(0)
    model, x = Cut().eval(), torch.randn(4, 4)
    with Runtime.load(captured(model, {"x": x})) as runtime:
        got = runtime.run({"x": x})["output"]
    np.testing.assert_allclose(got, model(x).detach().numpy(), rtol=1e-4, atol=1e-5)


class Alike(nn.Module):
    """How alike a vector is to each of several, by an operator that torch makes of others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vectors = nn.ParameterList(torch.randn(4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([F.cosine_similarity(x, v, dim=1) for v in self.vectors], dim=1)


@pytest.mark.parametrize("strategy", ["single", "greedy"])
def test_what_operators_are_made_of_writes_nothing_in_place(
    strategy: str, captured: Capture
) -> None:
    model, x = Alike().eval(), torch.randn(4, 4)
    made = specialise(ingest(model, {"x": x}), 4)
    stack_branches(made, plan_weight_stacks(made))
    operators = made.graph.find_nodes(op="call_function", target=aten.cosine_similarity.default)
    assert not operators  # stacked
    assert not any(n.target._schema.is_mutable for n in made.graph.nodes if n.op == "call_function")
    with Runtime.load(captured(model, {"x": x}, strategy=strategy, streams=3)) as runtime:
        got = runtime.run({"x": x})["output"]
    np.testing.assert_allclose(got, model(x).detach().numpy(), rtol=1e-4, atol=1e-5)


class Cleaned(nn.Module):
    """Assigns to where a mask is, as Trompt does with what is missing: `vmap` has no rule for it.
    Its own `x` to each lane or one for all, layers before and behind."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared = shared
        self.inner = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.outer = nn.ModuleList(nn.Linear(4, 2) for _ in range(3))
        self.scales = nn.ParameterList(torch.randn(4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        scores = []
        for inner, outer, scale in zip(self.inner, self.outer, self.scales, strict=True):
            y = (x.exp() if self.shared else inner(x)) * scale
            y[x > 0] = 2.0
            scores.append(outer(y * 3).sigmoid())
        return torch.cat(scores, 1)


@pytest.mark.parametrize("shared", [False, True])
def test_what_runs_over_no_dimension_more_runs_for_each_lane(
    shared: bool, captured: Capture
) -> None:
    model, x = Cleaned(shared).eval(), torch.randn(4, 4)
    found = operators(stacked(model, {"x": x}))
    assert found[aten.index_put.default] == 3
    assert found[aten.linear.default] == 0
    assert found[aten.sigmoid.default] == 1
    with Runtime.load(captured(model, {"x": x})) as runtime:
        got = runtime.run({"x": x})["output"]
    np.testing.assert_allclose(got, model(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_no_stack_without_work() -> None:
    """Pieces that go straight into the trunk are left as they are."""
    model = streamrec(features=3, dims=(8,), rows_scale=0.001)
    made = specialise(ingest(model, model.example_inputs(4)), 4)
    assert [len(stack.members) for stack in plan_weight_stacks(made)] == []  # lookups not stacked


def test_small_products_of_lanes_are_inlined_and_large_ones_not() -> None:
    model = streamrec(features=4, dims=(8,), rows_scale=0.001)
    for bucket, products in ((1, 0), (64, 2)):
        made = stacked(model, model.example_inputs(4), bucket)
        inline_linears(made)
        assert operators(made)[aten.baddbmm.default] == products


def test_eight_towers_of_the_reference_model() -> None:
    model = mt_wide_deep(rows_scale=0.00001, shared=(32, 16), tower=(8, 4))
    found = operators(stacked(model, model.example_inputs(4)))
    assert found[aten.linear.default] == 2  # the shared layers
    assert found[aten.baddbmm.default] == 2


@given(
    dims=st.lists(st.sampled_from([4, 8]), min_size=2, max_size=5),
    odd=st.sets(st.integers(0, 4)),
    bucket=st.integers(1, 5),
)
@settings(max_examples=6, deadline=None)
def test_any_mixture_computes_the_same(dims: list[int], odd: set[int], bucket: int) -> None:
    model = Branches(dims, odd=tuple(odd)).eval()
    made = stacked(model, draw(model, 4), bucket)
    request = draw(model, bucket)
    state = dict(model.state_dict())
    for stack in [*plan(model, bucket)]:
        state[stack.name] = stack.store(state)
    values: dict[str, Tensor] = {f"input:{k}": v for k, v in request.items()}
    values |= {f"weight:{k}": v for k, v in state.items()}
    values |= {f"const:{k}": v for k, v in made.constants.items()}
    for name, members in made.staged.items():
        values[f"staged:{name}"] = torch.cat([request[m].reshape(-1) for m in members])
    env: dict[torch.fx.Node, Any] = {}
    for node in made.graph.nodes:
        if node.op == "placeholder":
            env[node] = values[str(node.target)]
        else:
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: env[n])
            env[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    with torch.inference_mode():
        want = model(list(request.values()))
    torch.testing.assert_close(env[made.outputs["output"]], want, rtol=1e-4, atol=1e-5)


def plan(model: Branches, bucket: int) -> list[Any]:
    made = specialise(ingest(model, draw(model, 4)), bucket)
    tables = plan_stacks(made)
    stack_lookups(made, tables)
    return [*tables, *plan_weight_stacks(made)]
