"""The operator over float32 rows as plain torch has it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from recreplay.runtime.row_bags import row_bags_operator, weighted_bags_operator


@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("counted_from", [False, True])
@pytest.mark.parametrize(("length", "mean"), [(1, False), (3, False), (3, True)])
def test_bags_are_sums_or_means_of_the_rows(
    ids_dtype: torch.dtype, counted_from: bool, length: int, mean: bool
) -> None:
    table = torch.randn(20, 7)
    ids = torch.randint(0, 10, (4, length), dtype=ids_dtype)
    first = torch.tensor([0, 10, 3, 0], dtype=ids_dtype) if counted_from else None
    operator = row_bags_operator()
    got = operator(table, ids.flatten(), first, length, mean)
    rows = table[(ids if first is None else ids + first[:, None]).long()]
    torch.testing.assert_close(got, rows.mean(1) if mean else rows.sum(1))
    out = torch.empty_like(got)
    torch.ops.recreplay.row_bags.out(table, ids, first, length, mean, out=out)
    assert torch.equal(out, got)
    there = (t if t is None else t.to("meta") for t in (table, ids, first))
    fake = operator(*there, length, mean)
    assert (fake.shape, fake.dtype) == (got.shape, got.dtype)


@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64])
def test_bags_of_rows_that_are_multiplied(ids_dtype: torch.dtype) -> None:
    table, factors = torch.randn(20, 7), torch.randn(4, 3)
    ids = torch.randint(0, 20, (4, 3), dtype=ids_dtype)
    operator = weighted_bags_operator()
    got = operator(table, ids.flatten(), factors, 3, False)
    want = F.embedding_bag(ids, table, mode="sum", per_sample_weights=factors)
    torch.testing.assert_close(got, want)
    fake = operator(*(t.to("meta") for t in (table, ids, factors)), 3, False)
    assert (fake.shape, fake.dtype) == (got.shape, got.dtype)
    table[0], ids[1, 2] = float("nan"), 0
    factors = (ids != 0).float()
    want = F.embedding_bag(ids, table, mode="sum", padding_idx=0)
    torch.testing.assert_close(operator(table, ids, factors, 3, True), want)
    assert operator(table, ids, factors, 3, False).isnan().any(1).equal((ids == 0).any(1))
