"""The layers against plain references, and what padding means to the sequence models."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from recreplay.models import Ranker, dien, din
from recreplay.models.interest_evolution import GatedRecurrence, InterestAttention
from recreplay.models.layers import (
    AttentionPooling,
    Behaviours,
    DotInteraction,
    Linear,
    Table,
    Tables,
    mlp,
)

TINY = 1e-4
M = TypeVar("M", bound=nn.Module)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(module: M, seed: int = 0) -> M:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.requires_grad_(False).normal_(generator=generator)
    return module


def test_dot_interaction_takes_each_pair_once_in_row_order() -> None:
    vectors = [rand(3, 4, seed=i) for i in range(5)]
    want = [(vectors[i] * vectors[j]).sum(1) for i in range(5) for j in range(i)]
    torch.testing.assert_close(DotInteraction(5)(vectors), torch.stack(want, dim=1))


def test_table_pools_by_a_sum_and_tables_read_one_item_each() -> None:
    table = filled(Table(6, 3))
    ids = torch.tensor([[0, 5], [2, 2]])
    rows = table.weight
    torch.testing.assert_close(table(ids), torch.stack([rows[0] + rows[5], 2 * rows[2]]))
    torch.testing.assert_close(table(ids[:, 0]), rows[[0, 2]])
    torch.testing.assert_close(table.each(ids), rows[ids])
    tables = filled(Tables([4, 6], [2, 3]))
    assert [tuple(x.shape) for x in tables([ids[:, 0], ids[:, 1]])] == [(2, 2), (2, 3)]
    with pytest.raises(ValueError, match="zip"):
        tables([ids[:, 0]])


def test_attention_pooling_is_a_weighted_mean() -> None:
    pool = filled(AttentionPooling(4))
    items = rand(2, 7, 4)
    same = items[:, :1].expand(2, 7, 4)
    torch.testing.assert_close(pool(same), items[:, 0])
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(pool(items[:, order]), pool(items))
    assert not torch.allclose(pool(items), items.mean(dim=1))


@pytest.mark.parametrize(
    ("last", "kind"), [("relu", nn.ReLU), ("sigmoid", nn.Sigmoid), ("softmax", nn.Softmax)]
)
def test_mlp_ends_as_asked(last: str, kind: type[nn.Module]) -> None:
    layers = list(mlp((4, 3, 2), last=last))  # type: ignore[arg-type]
    assert [type(m) for m in layers] == [Linear, nn.ReLU, Linear, kind]
    assert [type(m) for m in mlp((4, 3), last="none")] == [Linear]


def test_recurrence_with_factor_one_is_a_gru() -> None:
    ours = filled(GatedRecurrence(5, 4))
    reference = nn.GRU(5, 4, batch_first=True).requires_grad_(False)
    # The stock layer's gate says how much to keep, ours how much to take: 1 - s(x) = s(-x).
    flip = torch.ones(12, 1)
    flip[4:8] = -1.0
    ih, hh, b_ih, b_hh = reference.parameters()
    ih.copy_(ours.of_item.weight * flip)
    hh.copy_(ours.of_state.weight * flip)
    b_ih.copy_(ours.of_item.bias * flip[:, 0])
    b_hh.copy_(ours.of_state.bias * flip[:, 0])
    items = rand(3, 6, 5)
    states = torch.stack(ours(items, torch.ones(3, 6)), dim=1)
    torch.testing.assert_close(states, reference(items)[0])


def test_recurrence_keeps_the_state_where_the_factor_is_zero() -> None:
    recurrence = filled(GatedRecurrence(5, 4))
    items, factors = rand(2, 4, 5), torch.tensor([[1.0, 0.0, 0.5, 0.0]] * 2)
    states = recurrence(items, factors)
    assert torch.equal(states[1], states[0])
    assert torch.equal(states[3], states[2])
    torch.testing.assert_close(recurrence(items[:, ::2], factors[:, ::2])[1], states[3])


def test_interest_attention_ignores_empty_positions() -> None:
    attention = filled(InterestAttention(3, 4))
    interests, candidate = rand(2, 5, 4), rand(2, 3, seed=1)
    mask = torch.tensor([[True, True, False, True, False], [False] * 5])
    weights = attention(interests, candidate, mask)
    torch.testing.assert_close(weights.sum(dim=1), torch.tensor([1.0, 0.0]))
    assert not weights[~mask].any()


@pytest.mark.parametrize("factory", [din, dien])
def test_padding_changes_nothing(factory: Callable[..., Ranker]) -> None:
    """A model for 5 behaviours equals one for 12 with the same weights and 7 empty positions."""
    short, long = (factory(length=n, rows_scale=TINY) for n in (5, 12))
    long.load_state_dict(short.state_dict())
    inputs = short.example_inputs(4)
    inputs["behaviour"] = torch.tensor([[1, 2, 3, 4, 5]] * 3 + [[7, 6, 5, 4, 3]])
    want = short(**inputs)
    for places in ([0, 1, 2, 3, 4], [7, 8, 9, 10, 11], [0, 3, 4, 8, 10]):
        padded = torch.zeros(4, 12, dtype=torch.int64)
        padded[:, places] = inputs["behaviour"]
        got = long(**{**inputs, "behaviour": padded})
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factory", [din, dien])
def test_a_user_without_history_gets_a_finite_score(factory: Callable[..., Ranker]) -> None:
    model = factory(length=6, rows_scale=TINY)
    inputs = model.example_inputs(3)
    inputs["behaviour"] = torch.zeros_like(inputs["behaviour"])
    assert bool(torch.isfinite(model(**inputs)).all())


def test_behaviours_per_position_equal_one_table_when_the_tables_are_equal() -> None:
    shared = filled(Behaviours(9, 4, 3, per_position=False))
    apart = filled(Behaviours(9, 4, 3, per_position=True))
    for parameter in apart.parameters():
        parameter.copy_(next(shared.parameters()))
    ids = torch.tensor([[1, 0, 8], [3, 3, 2]])
    assert torch.equal(apart(ids), shared(ids))
    assert len(list(apart.parameters())) == 3


@pytest.mark.parametrize("factory", [din, dien])
def test_tables_per_position_rank_and_export(factory: Callable[..., Ranker]) -> None:
    model = factory(length=6, per_position_tables=True, rows_scale=TINY)
    inputs = model.example_inputs(3)
    batch = torch.export.Dim("batch", min=1)
    shapes = {name: {0: batch} for name in inputs}
    exported = torch.export.export(model, (), kwargs=inputs, dynamic_shapes=shapes).module()
    one = model.example_inputs(1, seed=5)
    torch.testing.assert_close(exported(**one), model(**one))


def test_linear_leaves_the_global_generator_alone_and_builds_on_meta() -> None:
    before = torch.get_rng_state()
    assert Linear(3, 4).weight.device.type == "cpu"
    assert torch.equal(torch.get_rng_state(), before)
    with torch.device("meta"):
        assert Linear(3, 4).weight.is_meta
