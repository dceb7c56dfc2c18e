"""What every reference model shares: described inputs, example batches and seeded weights.

A model says what it reads once, as a tuple of inputs; example batches, their names and the bounds
of every id follow from that. Names are flat: a `list` parameter `ids` of
`forward` shows up as `ids_0`, `ids_1`, ..., which is also how capture names features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from .layers import Linear, Table

SMALLEST_TABLE = 8
BIAS_STD = 0.1


@dataclass(frozen=True)
class DenseInput:
    """A float32 input `[B, width]`, drawn from a unit normal as normalised counters would be."""

    name: str
    width: int

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        return torch.randn(batch, self.width, generator=generator, device="cpu")


@dataclass(frozen=True)
class IdInput:
    """An int64 input of ids in `[0, rows)`: `[B]` for one lookup, `[B, lookups]` for more.

    `group` names the `list` parameter of `forward` that the tensor is an item of. A `padded` input
    is a sequence `[B, lookups]` of ids from 1 on, followed by zeros up to its full length; every
    row has a length of its own, at least 1.
    """

    name: str
    rows: int
    lookups: int = 1
    group: str | None = None
    padded: bool = False

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        shape = (batch, self.lookups) if self.lookups > 1 or self.padded else (batch,)
        first = 1 if self.padded else 0
        ids = torch.randint(first, self.rows, shape, generator=generator, device="cpu")
        if not self.padded:
            return ids
        lengths = torch.randint(1, self.lookups + 1, (batch, 1), generator=generator, device="cpu")
        positions = torch.arange(self.lookups, device="cpu")
        return ids.masked_fill(positions >= lengths, 0)


@dataclass(frozen=True)
class JaggedInput:
    """An int64 input of ids `[N]` in `[0, rows)`, those of all rows end to end, 0 or more a row.

    A second input, `offsets`, is int64 `[B + 1]`: row i has the ids from offset i to offset i + 1.
    The number of ids in a row is geometric with mean `length`: many short histories, few long
    ones.
    """

    name: str
    rows: int
    length: float

    @property
    def offsets(self) -> str:
        return f"{self.name}_offsets"

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """The offsets."""
        uniform = torch.rand(batch, generator=generator, device="cpu", dtype=torch.float64)
        lengths = torch.log1p(-uniform) / math.log1p(-1 / (1 + self.length))
        return torch.cat([torch.zeros(1), lengths.floor().cumsum(0)]).to(torch.int64)

    def draw_ids(self, offsets: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randint(0, self.rows, (int(offsets[-1]),), generator=generator, device="cpu")


def id_list(rows: list[int], lookups: int = 1) -> tuple[IdInput, ...]:
    """The inputs `ids_0`, `ids_1`, ... of a model that takes one list of ids, one per table."""
    return tuple(IdInput(f"ids_{i}", n, lookups, group="ids") for i, n in enumerate(rows))


class Ranker(nn.Module):
    """A ranking model that knows its inputs, in the order in which `forward` takes them."""

    inputs: tuple[DenseInput | IdInput | JaggedInput, ...]

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Tensor]:
        """Random requests of `batch` rows on the CPU, by flat input name; one seed, one result."""
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        generator = torch.Generator(device="cpu").manual_seed(seed)
        drawn: dict[str, Tensor] = {}
        for spec in self.inputs:
            values = spec.draw(batch, generator)
            if isinstance(spec, JaggedInput):
                drawn[spec.name] = spec.draw_ids(values, generator)
                drawn[spec.offsets] = values
            else:
                drawn[spec.name] = values
        return drawn

    @property
    def jagged_inputs(self) -> dict[str, str]:
        """The jagged inputs, and the input with the offsets of each."""
        return {s.name: s.offsets for s in self.inputs if isinstance(s, JaggedInput)}

    def arguments(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor | list[Tensor]]:
        """Keyword arguments of `forward` from flat inputs: `ids_0`, `ids_1` become `ids=[...]`."""
        arguments: dict[str, Tensor | list[Tensor]] = {}
        for spec in self.inputs:
            group = spec.group if isinstance(spec, IdInput) else None
            if group is None:
                arguments[spec.name] = inputs[spec.name]
                if isinstance(spec, JaggedInput):
                    arguments[spec.offsets] = inputs[spec.offsets]
                continue
            items = arguments.setdefault(group, [])
            assert isinstance(items, list)
            items.append(inputs[spec.name])
        return arguments


RankerT = TypeVar("RankerT", bound=Ranker)


def scaled(rows: int, rows_scale: float) -> int:
    """Rows of a table after scaling; no table shrinks below 8 rows, or its own size if smaller."""
    if rows_scale <= 0:
        raise ValueError(f"rows_scale must be positive, got {rows_scale}")
    return max(min(rows, SMALLEST_TABLE), round(rows * rows_scale))


def finish(model: RankerT, seed: int) -> RankerT:
    """Fill the weights from `seed` and freeze the model for inference.

    Linear layers get normal weights of standard deviation `gain / sqrt(inputs)` and small biases,
    tables get `scale`, which together keep activations of order one. Large tables are filled in
    place. Models on the meta device only have shapes and are left as they are. The numbers are
    drawn on the CPU whatever the device, so that a seed means the same weights everywhere.
    """
    model.eval().requires_grad_(False)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for module in model.modules():
        if isinstance(module, Linear):
            _normal(module.weight, module.gain / math.sqrt(module.in_features), generator)
            if module.bias is not None:
                _normal(module.bias, BIAS_STD, generator)
        elif isinstance(module, Table):
            _normal(module.weight, module.scale, generator)
    return model


def _normal(weight: Tensor, std: float, generator: torch.Generator) -> None:
    if weight.device.type == "cpu":
        weight.normal_(0.0, std, generator=generator)
    elif not weight.is_meta:
        drawn = torch.empty(weight.shape, dtype=weight.dtype, device="cpu")
        weight.copy_(drawn.normal_(0.0, std, generator=generator))
