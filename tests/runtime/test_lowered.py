"""Float32 values as bfloat16, float16 and int8 rows: how near they stay, and what is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recreplay.capture import capture
from recreplay.runtime import lowered
from recreplay.runtime.lowered import lower, part_names, unfit
from recreplay.runtime.tf32 import products_in

ROWS = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)
values = st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False)


def back(codes: torch.Tensor, scales: torch.Tensor) -> np.ndarray:
    """Int8 rows as the rewritten lookup reads them, in float32."""
    return (codes.float() * scales[:, :1] + scales[:, 1:]).numpy()


@settings(max_examples=300, deadline=None)
@given(rows=hnp.arrays(np.float32, ROWS, elements=values), small=st.integers(0, 24))
def test_a_byte_is_at_most_half_a_scale_away(rows: np.ndarray, small: int) -> None:
    rows = (rows * 2.0**-small).astype("f4")
    codes, scales = lower(torch.from_numpy(rows), "int8 rows")
    assert codes.dtype == torch.uint8
    assert codes.shape == rows.shape
    assert scales.shape == (len(rows), 2)
    # Reading multiplies and adds in float32, each of which rounds to 2^-24 of what it gives.
    rounding = 3 * np.abs(rows).max(1, keepdims=True) * 2.0**-23 + np.finfo("f4").tiny
    gap = np.abs(back(codes, scales).astype("f8") - rows)
    assert (gap <= scales[:, :1].numpy() / 2 + rounding).all()


@given(value=st.floats(width=32, allow_nan=False, allow_infinity=False), dim=st.integers(1, 9))
def test_rows_of_one_value_are_exact(value: float, dim: int) -> None:
    rows = torch.full((3, dim), value)
    codes, scales = lower(rows, "int8 rows")
    assert not scales[:, 0].any()
    np.testing.assert_array_equal(back(codes, scales), rows.numpy())


def test_the_ends_of_a_row_are_its_first_and_last_byte() -> None:
    codes, scales = lower(torch.tensor([[-1.0, 4.1, 0.0], [2.0, 2.0, 2.0]]), "int8 rows")
    assert codes.tolist() == [[0, 255, 50], [0, 0, 0]]
    np.testing.assert_allclose(scales, [[0.02, -1.0], [0.0, 2.0]], rtol=1e-6)


def test_pieces_are_quantised_as_the_whole_is(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(23, 4)
    whole = lower(rows, "int8 rows")
    monkeypatch.setattr(lowered, "_CHUNK", 20)
    for one, other in zip(lower(rows, "int8 rows"), whole, strict=True):
        assert torch.equal(one, other)
    rows[17, 2] = torch.inf
    assert unfit(rows, "int8 rows") == "row 17 holds inf, which int8 rows cannot hold"


@pytest.mark.parametrize(
    ("kind", "bad", "text"),
    [
        ("int8 rows", float("nan"), "row 1 holds nan, which int8 rows cannot hold"),
        ("int8 rows", float("-inf"), "row 1 holds -inf, which int8 rows cannot hold"),
        ("float16", 7e4, "row 1 holds 70000, which float16 cannot hold"),
        ("bfloat16", 3.4e38, "row 1 holds 3.4e+38, which bfloat16 cannot hold"),
        ("float16", float("nan"), None),
        ("bfloat16", float("inf"), None),
        ("float16", 6e4, None),
    ],
)
def test_what_a_type_cannot_hold(kind: str, bad: float, text: str | None) -> None:
    rows = torch.ones(3, 2)
    rows[1, 1] = bad
    assert unfit(rows, kind) == text
    assert unfit(torch.ones(3, 2), kind) is None


def test_a_row_whose_range_overflows_is_refused() -> None:
    rows = torch.tensor([[1.0, 2.0], [3e38, -3e38]])
    assert unfit(rows, "int8 rows") == "row 1 holds 3e+38, which int8 rows cannot hold"


def test_float_types_round_to_nearest() -> None:
    weight = torch.randn(4)
    for kind, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        assert part_names("w", kind) == ("w",)
        assert torch.equal(lower(weight, kind)[0], weight.to(dtype))
    assert part_names("w", "int8 rows") == ("w", "scales:w")


def switches() -> tuple[str, bool]:
    """Torch refuses to tell the second where parts of cuDNN were told apart, and does not export a
    model then."""
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("precision", "products", "others"),
    [("fp32", None, False), ("bf16", None, False), ("tf32", "tf32", True)],
)
def test_switches_of_tf32_are_as_captured_in_the_block_alone(
    precision: str, products: str | None, others: bool
) -> None:
    """Convolutions are in TF32 on CUDA unless torch is told, and would differ from the model."""
    before = switches()
    assert before[1]
    with products_in(precision):
        assert switches() == (products or before[0], others)
        torch.nn.functional.conv1d(torch.ones(1, 1, 3), torch.ones(1, 1, 2))  # asks for it, too
        torch.nn.GRU(2, 2)(torch.ones(1, 1, 2))
    assert switches() == before


def test_what_parts_of_cudnn_were_told_is_kept() -> None:
    cudnn: Any = torch.backends.cudnn
    try:
        cudnn.conv.fp32_precision = "ieee"
        with products_in("tf32"):
            assert (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision) == ("ieee", "tf32")
        assert (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision) == ("ieee", "tf32")
    finally:
        cudnn.conv.fp32_precision = "tf32"
    assert switches()[1]


def test_threads_leave_the_switches_as_they_were() -> None:
    before = switches()

    def turn(precision: str) -> None:
        for _ in range(50):
            with products_in(precision):
                assert switches()[1] == (precision == "tf32")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(turn, ["fp32", "tf32", "bf16", "tf32"]))
    assert switches() == before


class Convolving(torch.nn.Module):
    """Called in TF32, which a CPU does not have, it is as far off as none would be."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv1d(4, 2, 3)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        result = self.layer(items).amax(2)
        exact = torch.compiler.is_compiling() or not switches()[1]
        return result if exact else result + 1


def test_a_capture_is_compared_with_the_model_in_float32(tmp_path: Path) -> None:
    example = {"items": torch.randn(4, 4, 8)}
    capture(Convolving().eval(), example, out=tmp_path / "m.rr", buckets=[2], compiler="eager")
