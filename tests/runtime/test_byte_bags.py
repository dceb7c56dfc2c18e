"""The operator over int8 rows as plain torch has it."""

from __future__ import annotations

import pytest
import torch

from recreplay.runtime.byte_bags import byte_bags_operator
from recreplay.runtime.lowered import INT8, lower


@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("length", "mean"), [(1, False), (3, False), (3, True)])
def test_bags_are_sums_or_means_of_the_rows(
    ids_dtype: torch.dtype, length: int, mean: bool
) -> None:
    table = torch.randn(20, 7)
    codes, scales = lower(table, INT8)
    ids = torch.randint(0, 20, (4, length), dtype=ids_dtype)
    operator = byte_bags_operator()
    got = operator(codes, scales, ids, length, mean)
    rows = table[ids.long()]
    want = rows.mean(1) if mean else rows.sum(1)
    assert got.shape == (4, 7)
    assert (got - want).abs().max() <= 0.5 * scales[:, 0].max() * length + 1e-5
    out = torch.empty_like(got)
    torch.ops.recreplay.byte_bags.out(codes, scales, ids, length, mean, out=out)
    assert torch.equal(out, got)
    fake = operator(*(t.to("meta") for t in (codes, scales, ids)), length, mean)
    assert (fake.shape, fake.dtype) == (got.shape, got.dtype)
