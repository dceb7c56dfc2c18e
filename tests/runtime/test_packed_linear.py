"""The blocks of a packed weight, and the operator over them as plain torch has it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recreplay.runtime.packed_linear import pack, packed_linear_operator, unpack
from recreplay.runtime.processor import block_columns, instruction_sets

COLUMNS = block_columns(instruction_sets())
SIZES = st.sampled_from([1, 2, 3, COLUMNS - 1, COLUMNS, COLUMNS + 1, 3 * COLUMNS + 5])


@given(
    rows=SIZES,
    length=SIZES,
    columns=st.sampled_from([16, 64]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_packing_moves_elements_and_changes_none(
    rows: int, length: int, columns: int, dtype: torch.dtype
) -> None:
    length += length % 2 if dtype is torch.bfloat16 else 0
    weight = torch.randn(rows, length).to(dtype)
    packed = pack(weight, columns)
    assert packed.shape == weight.shape
    assert torch.equal(packed.flatten().sort().values, weight.flatten().sort().values)
    assert torch.equal(unpack(packed, columns), weight)


def test_a_block_has_its_columns_side_by_side() -> None:
    weight = torch.arange(130.0 * 4).view(130, 4)
    flat = pack(weight, 64).flatten()
    assert flat[:64].tolist() == weight[:64, 0].tolist()
    assert flat[-2:].tolist() == weight[-2:, 3].tolist()  # the last block is two columns wide
    pairs = pack(weight.bfloat16(), 64).flatten()
    assert pairs[:4].tolist() == weight[:2, :2].bfloat16().flatten().tolist()


def test_bfloat16_without_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bfloat16 \[out, in\] \[4, 3\] has an odd `in`"):
        pack(torch.zeros(4, 3, dtype=torch.bfloat16), 64)


@settings(deadline=None)  # the first call defines the operator
@given(
    lanes=st.sampled_from([1, 3]),
    rows=st.sampled_from([1, 5]),
    length=st.sampled_from([2, 70]),
    columns=st.sampled_from([1, 66]),
    spare=st.integers(0, 2),
    shared=st.booleans(),
    biased=st.booleans(),
    relu=st.booleans(),
)
def test_the_operator_is_a_linear_layer_a_lane(
    lanes: int,
    rows: int,
    length: int,
    columns: int,
    spare: int,
    shared: bool,
    biased: bool,
    relu: bool,
) -> None:
    spare = spare if lanes > 1 else 0  # rows that align a lane
    weight = torch.randn(lanes, columns + spare, length)
    bias = torch.randn(lanes, columns) if biased else None
    x = torch.randn(1 if shared or lanes == 1 else lanes, rows, length)
    want = x @ weight[:, :columns].transpose(1, 2)
    if bias is not None:
        want = want + bias.unsqueeze(1)
    if relu:
        want = want.clamp_min(0)
    operator = packed_linear_operator()
    packed = pack(weight.view(-1, length), COLUMNS)
    if lanes == 1:
        x, want, bias = x[0], want[0], None if bias is None else bias[0]
    got = operator(x, packed, bias, lanes, columns, relu)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    out = torch.empty_like(got)
    torch.ops.recreplay.packed_linear.out(x, packed, bias, lanes, columns, relu, out=out)
    assert torch.equal(out, got)
    assert (
        got.shape
        == operator(
            *(t if t is None else t.to("meta") for t in (x, packed, bias)), lanes, columns, relu
        ).shape
    )


@given(
    lists=st.sampled_from([1, 3]),
    rows=st.sampled_from([1, 7]),
    columns=st.sampled_from([1, 36, COLUMNS + 2]),
    biased=st.booleans(),
    relu=st.booleans(),
)
def test_the_operator_takes_weights_that_a_request_makes(
    lists: int, rows: int, columns: int, biased: bool, relu: bool
) -> None:
    x, weight = torch.randn(lists, rows, 5), torch.randn(lists, 5, columns)
    bias = torch.randn(lists, columns) if biased else None
    want = x @ weight
    if bias is not None:
        want = want + bias.unsqueeze(1)
    if relu:
        want = want.clamp_min(0)
    got = packed_linear_operator()(x, weight, bias, 0, columns, relu)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    on_meta = (t if t is None else t.to("meta") for t in (x, weight, bias))
    assert got.shape == packed_linear_operator()(*on_meta, 0, columns, relu).shape
