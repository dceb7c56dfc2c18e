"""Copies of weights as matrix products want them, beside the stored ones.

`packed:NAME` is `weight:NAME` in the blocks of `packed_linear`; `turned:NAME` is it transposed, and
`turned_packed:NAME` that in blocks, of a weight that is stored `[in, out]`. `wide:NAME`,
`wide_packed:NAME` and so on are the same in float32, for buckets that multiply so what is stored in
a lower type. Made when an artifact is loaded and again when a weight is refreshed, always at the
same address. NAME may be a storage in which several weights lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from recreplay.runtime.huge_pages import HugePages
from recreplay.runtime.manifest import Manifest
from recreplay.runtime.packed_linear import pack

KINDS = (
    *("packed", "turned", "turned_packed"),
    *("wide", "wide_packed", "wide_turned", "wide_turned_packed"),
)


def copy_names(manifest: Manifest) -> list[str]:
    """The copies that segments read, each as `KIND:NAME`."""
    return sorted(
        {
            name
            for bucket in manifest.buckets
            for segment in bucket.segments
            for name in segment.inputs
            if name.startswith(tuple(f"{kind}:" for kind in KINDS))
        }
    )


def make_copies(
    names: Iterable[str], weights: Mapping[str, torch.Tensor], columns: int
) -> dict[str, torch.Tensor]:
    """Each named copy of a matrix, in the dtype that it is stored in or float32; packed ones in
    blocks of so many columns."""
    memory = HugePages()

    def place(made: torch.Tensor) -> torch.Tensor:
        return memory.copy(made) if made.is_cpu else made  # what is on a GPU stays there

    return {name: place(_make(name, weights[name.partition(":")[2]], columns)) for name in names}


def refresh_copies(
    copies: Mapping[str, torch.Tensor],
    name: str,
    weight: torch.Tensor,
    columns: int,
    rows: torch.Tensor | None = None,
) -> None:
    """Write the copies of the weight `name` anew where they are: segments hold their address.

    `rows`: which of the weight's were written, int64 `[k]` on its device; by default all.
    """
    for kind in KINDS:
        copy = copies.get(f"{kind}:{name}")
        if copy is None:
            continue
        if rows is not None and kind == "turned":
            copy.index_copy_(1, rows, weight.detach()[rows].t())
        elif rows is not None and kind == "packed":
            _repack(copy, weight.detach().flatten(1), columns, rows)
        else:
            copy.copy_(_make(f"{kind}:{name}", weight, columns))


def _repack(copy: torch.Tensor, weight: torch.Tensor, columns: int, rows: torch.Tensor) -> None:
    """The blocks that these rows are in."""
    flat, length = copy.view(-1), weight.shape[1]
    for block in sorted({row // columns for row in rows.tolist()}):
        begin = block * columns
        packed = pack(weight[begin : begin + columns], columns).view(-1)
        flat[begin * length : begin * length + len(packed)].copy_(packed)


def _make(name: str, weight: torch.Tensor, columns: int) -> torch.Tensor:
    steps = name.partition(":")[0].split("_")
    values = weight.detach()
    if "wide" in steps:
        values = values.float()
    if "turned" in steps:
        values = values.t().contiguous()
    # Of a convolution of single items, `[out, in, 1]`, too.
    return pack(values.flatten(1), columns) if "packed" in steps else values
