"""Weights kept in a lower type than the model's float32, and how values become what is stored.

- `bfloat16`, `float16`: rounded to the nearest, ties to even.
- `int8 rows`: a byte per value, and a scale and an offset per row, as FBGEMM's 8-bit row-wise
  quantisation has them (Khudia et al., arXiv:2101.05615): the offset is the smallest value of the
  row, the scale its range / 255, and a byte b stands for `b * scale + offset`, which is at most
  half a scale away from the value. Rows of one value have scale 0 and come back exactly. FBGEMM
  keeps scale and offset behind the bytes of each row; here they are `[rows, 2]` of their own,
  named `scales:NAME`, so that plain operators read both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Stored = Literal["bfloat16", "float16", "int8 rows"]
INT8: Stored = "int8 rows"
SCALES = "scales:"
_STEPS = 255  # between the smallest and the largest value of a row
_CHUNK = 1 << 22  # elements at a time, since quantising needs several times their memory


def part_names(name: str, kind: str | None) -> tuple[str, ...]:
    """The tensors that a weight is stored as."""
    return (name, SCALES + name) if kind == INT8 else (name,)


def value_dtype(kind: str) -> torch.dtype:
    """Of what is stored for each value."""
    import torch

    by_kind: dict[str, torch.dtype] = {
        INT8: torch.uint8,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }
    return by_kind[kind]


def lower(values: torch.Tensor, kind: str) -> tuple[torch.Tensor, ...]:
    """What is stored for float32 `values`, in the order of `part_names`; see `unfit`."""
    import torch

    if kind != INT8:
        return (values.to(value_dtype(kind)),)
    values = values.detach()
    codes = torch.empty(values.shape, dtype=torch.uint8, device=values.device)
    scales = torch.empty((len(values), 2), dtype=torch.float32, device=values.device)
    pieces = (_chunks(tensor, values) for tensor in (values, codes, scales))
    for rows, code, scale in zip(*pieces, strict=True):
        _quantise(rows, code, scale)
    return codes, scales


def unfit(values: torch.Tensor, kind: str) -> str | None:
    """Why `values` cannot be stored so, or None. What a float type holds, NaN too, it keeps."""
    values = values.detach()
    for at, rows in enumerate(_chunks(values, values)):
        finite = rows.isfinite()
        if kind != INT8:
            bad = finite & rows.to(value_dtype(kind)).isinf()
        elif finite.all():  # the range has to be finite too
            range_ = rows.amax(1, keepdim=True) - rows.amin(1, keepdim=True)
            bad = range_.isinf().expand_as(rows)
        else:
            bad = ~finite
        if bad.any():
            first = bad.nonzero()[0].tolist()
            value = float(rows[tuple(first)])
            where = first[0] + at * _rows_of_chunk(values) if values.ndim else 0
            return f"row {where} holds {value:g}, which {kind} cannot hold"
    return None


def _quantise(rows: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> None:
    """Rows `[k, dim]` as bytes and `[k, 2]`; in float64, so that only the stored scale rounds."""
    import torch

    exact = rows.to(torch.float64)
    offset = exact.amin(1, keepdim=True)
    scale = ((exact.amax(1, keepdim=True) - offset) / _STEPS).to(torch.float32)
    divisor = torch.where(scale > 0, scale, 1.0).to(torch.float64)
    codes.copy_(((exact - offset) / divisor).round_().clamp_(0, _STEPS))
    scales.copy_(torch.cat([scale, offset.to(torch.float32)], dim=1))


def _rows_of_chunk(like: torch.Tensor) -> int:
    return max(1, _CHUNK // max(1, like[0].numel())) if like.ndim and len(like) else 1


def _chunks(tensor: torch.Tensor, like: torch.Tensor) -> list[torch.Tensor]:
    """`tensor` by rows, in as many pieces as `like` has."""
    if not tensor.ndim or not tensor.numel():
        return [tensor] if tensor.numel() else []
    return list(tensor.split(_rows_of_chunk(like)))  # type: ignore[no-untyped-call]
