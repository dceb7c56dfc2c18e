"""Weights in the blocked layout of oneDNN, beside the stored ones: `packed:NAME` of `weight:NAME`.

Made when an artifact is loaded and again when a weight is refreshed, always at the same address.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping

import torch

from recreplay.runtime.errors import EnvironmentMismatchError
from recreplay.runtime.manifest import Manifest

_PREFIX = "packed:"


def packed_names(manifest: Manifest) -> list[str]:
    """The weights that segments read packed."""
    return sorted(
        {
            name.removeprefix(_PREFIX)
            for bucket in manifest.buckets
            for segment in bucket.segments
            for name in segment.inputs
            if name.startswith(_PREFIX)
        }
    )


def pack_all(names: Iterable[str], weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The packed form of each named weight `[out, in]`, float32."""
    wanted = list(names)
    if wanted and not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        raise EnvironmentMismatchError(
            "the artifact reads weights packed by oneDNN, which this torch was built without; "
            "capture it again here"
        )
    return {name: _pack(weights[name]) for name in wanted}


def repack(packed: torch.Tensor, weight: torch.Tensor) -> None:
    """Write the packed form of `weight` where `packed` is: segments hold its address."""
    fresh = _pack(weight)
    nbytes = int(torch.ops.mkldnn._nbytes(fresh))
    ctypes.memmove(
        int(torch.ops.mkldnn.data_ptr(packed)), int(torch.ops.mkldnn.data_ptr(fresh)), nbytes
    )


def _pack(weight: torch.Tensor) -> torch.Tensor:
    made: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
    return made
