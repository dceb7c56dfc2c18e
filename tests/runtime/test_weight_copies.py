"""Copies of weights are written where they are, whole or by the rows that changed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recreplay.runtime.weight_copies import make_copies, refresh_copies

NAMES = ["packed:w", "turned:w", "turned_packed:w", "wide:w", "wide_packed:w"]


@settings(deadline=None)
@given(
    rows=st.sampled_from([1, 15, 64, 65, 200]),
    length=st.sampled_from([2, 6]),
    columns=st.sampled_from([16, 64]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    data=st.data(),
)
def test_copies_of_rows_are_as_made_anew(
    rows: int, length: int, columns: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    names = (
        NAMES
        if dtype is torch.float32 or rows % 2 == 0
        else [n for n in NAMES if "turned_" not in n]
    )
    weight = torch.randn(rows, length).to(dtype)
    copies = make_copies(names, {"w": weight}, columns)
    where = {name: copy.data_ptr() for name, copy in copies.items()}
    changed = data.draw(st.lists(st.integers(0, rows - 1), unique=True, max_size=rows))
    ids = torch.tensor(changed, dtype=torch.int64)
    weight[ids] = torch.randn(len(ids), length).to(dtype)
    refresh_copies(copies, "w", weight, columns, ids)
    for name, made in make_copies(names, {"w": weight}, columns).items():
        assert torch.equal(copies[name], made), name
        assert copies[name].data_ptr() == where[name]


@pytest.mark.parametrize("kind", ["packed", "turned"])
def test_other_rows_are_not_written_again(kind: str) -> None:
    weight = torch.randn(200, 4)
    copies = make_copies([f"{kind}:w"], {"w": weight}, 16)
    weight.zero_()  # which nobody told
    refresh_copies(copies, "w", weight, 16, torch.tensor([20, 31]))
    told = 16 if kind == "packed" else 2  # the rest of a block comes along
    assert int((copies[f"{kind}:w"] == 0).sum()) == told * 4
