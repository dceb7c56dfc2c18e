"""How large weights of an artifact are, by the header of their file alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from recreplay.runtime.manifest import TableView


@dataclass(frozen=True)
class WeightSize:
    elements: int
    itemsize: int

    @property
    def bytes(self) -> int:
        return self.elements * self.itemsize

    def copied(self, wide: bool) -> int:
        """Bytes of a copy of it (`runtime.weight_copies`), in float32 if `wide`."""
        return 4 * self.elements if wide else self.bytes


def weight_sizes(path: Path, tables: Mapping[str, TableView]) -> dict[str, WeightSize]:
    """Of every tensor of a safetensors file, and of the tables that lie inside of them."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    sizes, shapes = {}, {}
    for name, tensor in header.items():
        if name != "__metadata__":
            begin, end = tensor["data_offsets"]
            shapes[name] = tensor["shape"]
            elements = prod(tensor["shape"])
            sizes[name] = WeightSize(elements, (end - begin) // max(elements, 1))
    for name, view in tables.items():
        row = view.row or shapes[view.storage][1:]
        shapes[name] = [view.rows, *row]
        sizes[name] = WeightSize(prod(shapes[name]), sizes[view.storage].itemsize)
    return sizes
