"""`recreplay::packed_linear`: a linear layer over a weight that lies in blocks of columns.

A block holds 64 rows of the weight `[out, in]`, transposed: `[in, 64]`, the last one narrower; on
processors without AVX-512, whose registers hold fewer sums, it holds 16. So a product reads its
weight from front to back, whatever the number of rows that it has. In bfloat16 two neighbours along
`in` lie together, as the processor's dot products and AMX want them.

Packages multiply up to six rows with a block at a time, or 32 by AMX (`packed_linear.h` and
`linear_*.h` in `recreplay.capture.compilers`), which with one row is as fast as memory is. torch's
own layers over packed weights set up a primitive of oneDNN in every call, which takes 14 µs: 256 to
256 at 16 rows takes 37 µs so and 20 µs here, ONNX Runtime 22, and a weight that is not packed 28
(one AVX-512 core). What is below runs where no package is: in tracing and in tests.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from recreplay.runtime.own_operator import define_operator
from recreplay.runtime.processor import block_columns, instruction_sets

_PAIR = 2  # neighbours that lie together in bfloat16


def pack(weight: Tensor, columns: int) -> Tensor:
    """`[out, in]` of float32 or bfloat16 in blocks of so many columns: as many elements under the
    same shape.

    Raises ValueError for bfloat16 with an odd `in`.
    """
    rows = range(0, len(weight), columns)
    blocks = [_turn(weight.detach()[i : i + columns]).reshape(-1) for i in rows]
    return torch.cat(blocks).view(weight.shape)


def unpack(packed: Tensor, columns: int) -> Tensor:
    """The weight that was packed."""
    rows, flat = range(0, len(packed), columns), packed.reshape(-1)
    length = packed.shape[1]
    blocks = [flat[i * length : (i + columns) * length] for i in rows]
    return torch.cat([_turn_back(block, length) for block in blocks])


def _turn(block: Tensor) -> Tensor:
    if block.dtype is not torch.bfloat16:
        return block.t().contiguous()
    if block.shape[1] % _PAIR:
        raise ValueError(f"bfloat16 [out, in] {list(block.shape)} has an odd `in`")
    return block.view(len(block), -1, _PAIR).transpose(0, 1).contiguous()


def _turn_back(block: Tensor, length: int) -> Tensor:
    if block.dtype is not torch.bfloat16:
        return block.view(length, -1).t()
    return block.view(length // _PAIR, -1, _PAIR).transpose(0, 1).reshape(-1, length)


@cache
def packed_linear_operator() -> Callable[..., Any]:
    """The operator, defined when it is first asked for.

    `packed_linear(x, packed, bias, lanes, columns, relu) -> float32`:

    - one lane: `x` `[..., in]` to `[..., columns]`, `bias` `[columns]` or None, and `packed` has
      `columns` rows;
    - several, each with a weight of its own: `x` `[lanes, rows, in]`, or `[1, rows, in]` for all,
      to `[lanes, rows, columns]`, `bias` `[lanes, columns]` or None. Lane `i` has the rows of the
      weight that begin at `i * (rows of packed // lanes)`;
    - `lanes` of 0, for weights in no blocks, as a request makes them: `packed`
      `[L, in, columns]`, `x` `[L, rows, in]`, or `[1, rows, in]` for all, to `[L, rows, columns]`,
      `bias` `[L, columns]` or None.
    """
    schema = "Tensor x, Tensor packed, Tensor? bias, int lanes, int columns, bool relu"
    return define_operator("packed_linear", schema, _linear, _shape)


def _shape(x: Tensor, packed: Tensor, _bias: Any, lanes: int, columns: int, _relu: bool) -> Tensor:
    outer = list(x.shape[:-1]) if lanes == 1 else [lanes or packed.shape[0], x.shape[1]]
    return x.new_empty([*outer, columns], dtype=torch.float32)


def _linear(
    x: Tensor, packed: Tensor, bias: Tensor | None, lanes: int, columns: int, relu: bool
) -> Tensor:
    if lanes == 0:
        turned = packed
    else:
        weight = (
            unpack(packed, block_columns(instruction_sets()))
            .float()
            .view(lanes, -1, packed.shape[1])[:, :columns]
        )
        turned = weight.transpose(1, 2) if lanes > 1 else weight[0].t()
    result = torch.matmul(x.float(), turned)
    if bias is not None:
        result = result + (bias.unsqueeze(1) if turned.ndim == 3 else bias)
    return torch.relu(result) if relu else result
