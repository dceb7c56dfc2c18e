"""Copies of weights as the matrix library wants them, beside the stored ones.

`packed:NAME` is `weight:NAME` in the blocked layout of oneDNN; `turned:NAME` is it transposed,
`[in, out]`. Made when an artifact is loaded and again when a weight is refreshed, always at the
same address.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping

import torch

from recreplay.runtime.errors import EnvironmentMismatchError
from recreplay.runtime.manifest import Manifest

KINDS = ("packed", "turned")


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
    names: Iterable[str], weights: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Each named copy of a weight `[out, in]`, in the dtype that it is stored in."""
    return {name: _make(name, weights[name.partition(":")[2]]) for name in names}


def refresh_copies(copies: Mapping[str, torch.Tensor], name: str, weight: torch.Tensor) -> None:
    """Write the copies of the weight `name` anew where they are: segments hold their address."""
    turned, packed = copies.get(f"turned:{name}"), copies.get(f"packed:{name}")
    if turned is not None:
        turned.copy_(weight.t())
    if packed is not None:
        fresh = _make(f"packed:{name}", weight)
        nbytes = int(torch.ops.mkldnn._nbytes(fresh))
        ctypes.memmove(
            int(torch.ops.mkldnn.data_ptr(packed)), int(torch.ops.mkldnn.data_ptr(fresh)), nbytes
        )


def _make(name: str, weight: torch.Tensor) -> torch.Tensor:
    if name.startswith("turned:"):
        return weight.detach().t().contiguous()
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        raise EnvironmentMismatchError(
            "the artifact reads weights packed by oneDNN, which this torch was built without; "
            "capture it again here"
        )
    made: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
    return made
