"""The operator over jagged bags as plain torch has it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from recreplay.runtime.jagged_bags import jagged_bags_operator


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("mean", [False, True])
def test_bags_are_sums_or_means_of_the_rows(dtype: torch.dtype, mean: bool) -> None:
    """Two features of one division and one of another, each of a table of its own."""
    table = torch.randn(30, 7)
    ends = torch.tensor([[0, 2, 2, 5, 5, 9], [1, 4, 6, 6, 7, 9]], dtype=dtype)
    ids = torch.randint(0, 10, (3, 9), dtype=dtype)
    spots = torch.tensor([[0, 0, 0], [18, 6, 10], [9, 0, 20]])
    operator = jagged_bags_operator()
    got = operator(table, ids.flatten(), ends.flatten(), spots, 2, mean)
    want = []
    for row, division, first in ((0, 0, 0), (2, 1, 10), (1, 0, 20)):
        begin, end = int(ends[division, 0]), int(ends[division, 4])
        offsets = ends[division, :5] - begin
        mode = "mean" if mean else "sum"
        bags = (ids[row, begin:end] + first).to(dtype)
        want.append(F.embedding_bag(bags, table, offsets, mode=mode, include_last_offset=True))
    torch.testing.assert_close(got, torch.cat(want))
    out = torch.empty_like(got)
    torch.ops.recreplay.jagged_bags.out(
        table, ids.flatten(), ends.flatten(), spots, 2, mean, out=out
    )
    assert torch.equal(out, got)
    there = (t.to("meta") for t in (table, ids.flatten(), ends.flatten(), spots))
    fake = operator(*there, 2, mean)
    assert (fake.shape, fake.dtype) == (got.shape, got.dtype)
