"""Requests of which some inputs are on the device already: copied from there to there.

The staging memory of the device is filled by the host's work queue and not by the graph, whose own
upload is left out then. Padding and the check of ids run on the device as well; the host learns
one bit, whether all ids are in range. If one is not, which is rare, the request goes the usual way
on the host, which clamps or says what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from recreplay.runtime.blocks import Block, Limits
from recreplay.runtime.devices.base import Device, Staging
from recreplay.runtime.fill import Filler
from recreplay.runtime.manifest import Bucket
from recreplay.runtime.spec import Slot

Array = np.ndarray[Any, Any]
_LARGEST = 2**63 - 1


def tensor_view(memory: torch.Tensor, slot: Slot) -> torch.Tensor:
    """`Slot.view` of a device's bytes."""
    raw = memory[slot.offset : slot.offset + slot.nbytes]
    return raw.view(getattr(torch, slot.dtype)).view(slot.shape)


@dataclass(frozen=True)
class _Limits:
    """`Limits` in the device's memory, of a feature a row or of a column each."""

    least: torch.Tensor
    end: torch.Tensor


@dataclass(frozen=True)
class _Columns:
    """`IdColumns` in the device's memory."""

    at: int
    columns: torch.Tensor
    limits: _Limits


@dataclass(frozen=True)
class _DeviceBlock:
    """A block (see `recreplay.runtime.blocks`) in the device's memory: `view` is `[F, B, ...]`, and
    the ids of its inputs are within `limits`."""

    view: torch.Tensor
    limits: _Limits | None
    columns: tuple[_Columns, ...]

    def pad(self, n: int) -> None:
        if n < self.view.shape[1]:
            self.view[:, n:] = self.view[:, :1]

    def checks(self, n: int) -> list[torch.Tensor]:
        """Whether ids are in range, as tensors of one truth each; not a number is not."""
        found = []
        if self.limits is not None:
            found.append(_all_in_range(self.view.flatten(1), self.limits))
        for some in self.columns:
            ids = self.view[some.at, :n].reshape(n, -1).index_select(1, some.columns)
            found.append(_all_in_range(ids, some.limits))
        return found


class Feeder:
    """Fills one bucket of one lane with requests of which some inputs are on its device."""

    def __init__(
        self,
        bucket: Bucket,
        filler: Filler,
        staging: Staging,
        device: Device,
        row_mask: str | None = None,
    ) -> None:
        """`row_mask`: the input that says which rows are not padding, if the model has one."""
        self._staging, self._device, self._checks = staging, device, filler.checks
        slots = {slot.name: slot for slot in bucket.inputs}
        self._wide = [name in filler.wide for name in filler.order]
        self._host = [slots[name].view(staging.host) for name in filler.order]
        self._views = [tensor_view(staging.device, slots[name]) for name in filler.order]
        self._blocks = [_on_device(block, staging.device) for block in filler.blocks]
        self._mask = None if row_mask is None else tensor_view(staging.device, slots[row_mask])

    def __call__(self, values: Sequence[Any], n: int) -> bool:
        """Copy, pad, check: True if the request is ready to be replayed without an upload, False if
        an id is out of range.

        `values`: numpy arrays, and tensors of the device, of exactly the captured dtypes and
        shapes.
        """
        on_host = [i for i, value in enumerate(values) if isinstance(value, np.ndarray)]
        fed = [i for i, value in enumerate(values) if not isinstance(value, np.ndarray)]
        with torch.inference_mode(), self._device.feeding():
            if on_host:
                for i in on_host:
                    if self._wide[i] and not _fit(values[i], self._host[i].dtype):
                        return False
                    self._host[i][:n] = values[i]
                self._staging.upload()  # of all, so before what is on the device is copied
            torch._foreach_copy_([self._views[i][:n] for i in fed], [values[i] for i in fed])
            # Copying narrows: what does not fit has to be found in what was given.
            wide = [(values[i], self._views[i].dtype) for i in fed if self._wide[i]]
            found = [_all_fit(ids, dtype) for ids, dtype in wide]
            for block in self._blocks:
                block.pad(n)
                if self._checks:
                    found += block.checks(n)
            if self._mask is not None:
                self._mask[:n] = True
                self._mask[n:] = False
            return not found or bool(torch.stack(found).all())

    def fetch(self, values: Sequence[Any]) -> list[Array]:
        """The same inputs, all of them on the host."""
        with self._device.feeding():
            return [
                v if isinstance(v, np.ndarray) else v.cpu().resolve_neg().numpy() for v in values
            ]


def _fit(ids: Array, dtype: np.dtype[Any]) -> bool:
    limits = np.iinfo(dtype)
    return bool(limits.min <= ids.min() and ids.max() <= limits.max)


def _all_fit(ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    limits = torch.iinfo(dtype)
    return ((ids >= limits.min) & (ids <= limits.max)).all()


def _all_in_range(ids: torch.Tensor, limits: _Limits) -> torch.Tensor:
    return ((ids >= limits.least) & (ids < limits.end)).all()


def _on_device(block: Block, memory: torch.Tensor) -> _DeviceBlock:
    limits = None
    if block.limits is not None:
        limits = _limits(block.limits, memory.device, (-1, 1))
    columns = tuple(
        _Columns(
            some.at,
            torch.tensor(some.columns, device=memory.device),
            _limits(some.limits, memory.device, (-1,)),
        )
        for some in block.columns
    )
    return _DeviceBlock(tensor_view(memory, block.slot), limits, columns)


def _limits(limits: Limits, device: torch.device, shape: tuple[int, ...]) -> _Limits:
    # Compared with a sign here: what no int64 can be is no limit.
    both = (
        np.minimum(numbers, _LARGEST).astype(np.int64) for numbers in (limits.least, limits.end)
    )
    return _Limits(*(torch.tensor(capped, device=device).view(shape) for capped in both))
