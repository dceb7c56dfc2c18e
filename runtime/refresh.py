"""New weights for a runtime that serves: written in place, at the same addresses, between replays.

What can be wrong with them is found before, and values are brought to the device before, so that
requests wait for no more than the write itself.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recreplay.runtime.caller_stream import settle
from recreplay.runtime.errors import RefreshError, RuntimeClosedError
from recreplay.runtime.lanes import CLOSED, LanePool
from recreplay.runtime.loading import LaneLoader
from recreplay.runtime.lowered import SCALES, lower, part_names, unfit
from recreplay.runtime.manifest import Manifest
from recreplay.runtime.request import plain_array
from recreplay.runtime.settled import digest
from recreplay.runtime.uninterrupted import not_interrupted

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class _Weight:
    """The tensors of a weight, and what they are stored as if that is not the model's float32."""

    parts: tuple[torch.Tensor, ...]
    lowered: str | None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.parts[0].shape)

    @property
    def dtype(self) -> torch.dtype:
        """What the model has, and new values are given in."""
        import torch

        return self.parts[0].dtype if self.lowered is None else torch.float32

    def stored(self, what: str, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """New values as they will be written, on the weight's device."""
        device = self.parts[0].device
        if self.lowered is None:
            return (values.to(self.parts[0]),)
        values = values.to(self.dtype)
        problem = unfit(values, self.lowered)
        if problem is not None:
            raise RefreshError(f"{what}: {problem}; nothing was written")
        return tuple(part.to(device) for part in lower(values, self.lowered))


@dataclass(frozen=True)
class _Write:
    """What a weight will hold: `values` in each of its parts, of all rows or of these."""

    weight: _Weight
    values: tuple[torch.Tensor, ...]
    rows: torch.Tensor | None = None

    def do(self) -> None:
        for part, value in zip(self.weight.parts, self.values, strict=True):
            if self.rows is None:
                part.copy_(value)
            else:
                part.index_copy_(0, self.rows, value)

    def done(self) -> torch.Tensor:
        """The weight as it will be, elsewhere; for one that is not lowered."""
        if self.rows is None:
            return self.values[0]
        return self.weight.parts[0].index_copy(0, self.rows, self.values[0])


class Refresher:
    """Writes weights while no lane replays."""

    def __init__(self, manifest: Manifest, loader: LaneLoader | None, lanes: LanePool) -> None:
        self._lanes = lanes
        self._columns = manifest.block_columns
        self._tied, self._unread = manifest.tied, frozenset(manifest.unread)
        self._settled = manifest.settled
        storages = {view.storage for view in manifest.tables.values()}
        self._storages = {name: view.storage for name, view in manifest.tables.items()}
        weights = {} if loader is None else loader.weights
        self._tensors = weights
        self._made = {} if loader is None else loader.made
        self._constants = {} if loader is None else loader.constants
        self._copies = {} if loader is None else loader.copies
        # A storage of several tables is written through its tables only.
        found = {
            name: _Weight(tuple(weights[part] for part in part_names(name, kind)), kind)
            for name in weights
            if name not in storages and not name.startswith(SCALES)
            for kind in [manifest.lowered.get(name)]
        }
        self._weights = {k: weight for k, weight in found.items() if k not in self._made}
        self._results = {k: found[k] for k in self._made}  # as what they are made of says
        self._made_of: dict[str, list[str]] = {}  # what each weight is in
        for name, how in self._made.items():
            for source in how.weights:
                self._made_of.setdefault(source, []).append(name)
        # One update at a time, where something is made of what two of them write.
        self._turn = threading.Lock()
        self.count = 0
        self._closed = False

    def describe(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        tied = {k: self._weights[name] for k, name in self._tied.items() if name in self._weights}
        return {
            name: (str(weight.dtype).removeprefix("torch."), weight.shape)
            for name, weight in sorted((self._weights | tied).items())
        }

    def update_rows(self, table: str, ids: Any, values: Any) -> None:
        import torch

        if table in self._settled:
            raise RefreshError(
                f"rows of {table!r} cannot change: the model was captured by its values; capture "
                "it with new ones"
            )
        own, weight = self._find(table)
        where = _tensor(ids, f"ids of table {table!r}").cpu()
        rows = _tensor(values, f"rows of table {table!r}")
        if where.ndim != 1 or where.is_floating_point() or where.dtype == torch.bool:
            raise RefreshError(
                f"ids of table {table!r} are {_describe(where)}; expected integers [k]"
            )
        what = f"rows of table {table!r}"
        _check_fit(what, rows, weight.dtype, (len(where), *weight.shape[1:]))
        where = where.to(torch.int64)
        if not len(where):
            return
        low, high = int(where.min()), int(where.max())
        total = weight.shape[0]
        if low < 0 or high >= total:
            raise RefreshError(
                f"id {low if low < 0 else high} is out of range; table {table!r} has "
                f"{total} rows, so ids are 0 to {total - 1}"
            )
        if len(np.unique(where.numpy())) != len(where):
            raise RefreshError(f"ids of table {table!r} repeat, so that it is open which row wins")
        where = where.to(weight.parts[0].device)
        new = weight.stored(what, rows)

        self._write({own: _Write(weight, new, where)})

    def update_weights(self, weights: Mapping[str, Any]) -> None:
        found: dict[str, _Write] = {}
        given: dict[str, tuple[str, torch.Tensor]] = {}
        for name, value in weights.items():
            if name in self._settled:
                self._check_settled(name, value)
            if name in self._unread:
                continue
            own, weight = self._find(name)
            what = f"weight {name!r}"
            new = _tensor(value, what)
            _check_fit(what, new, weight.dtype, weight.shape)
            if own not in given:
                given[own] = name, new
                found[own] = _Write(weight, weight.stored(what, new))
                continue
            other, same = given[own]
            if not _equal(same, new, weight.dtype):
                raise RefreshError(
                    f"weights {other!r} and {name!r} are one in the captured model, and were given "
                    "different values; give one of them, or capture a model that has both"
                )

        self._write(found)

    def _check_settled(self, name: str, value: Any) -> None:
        if digest(_tensor(value, f"weight {name!r}")) != self._settled[name]:
            raise RefreshError(
                f"weight {name!r} is not what it was at capture, where the model asked for its "
                "values (a mask of what it takes, a number that is a size); nothing was written. "
                "Capture the model that has these"
            )

    def _write(self, writes: dict[str, _Write]) -> None:
        """Do it, and what follows of it for other weights, while no lane replays; wholly, whoever
        is interrupted meanwhile."""
        import torch

        with self._turn:
            writes |= self._remade(writes)
            _, wait = settle(
                [v for w in writes.values() for v in (*w.values, w.rows) if v is not None]
            )

            def idle() -> None:
                with self._lanes.all_idle(), torch.no_grad():
                    if wait is not None:
                        wait()
                    self.count += 1  # stored answers say nothing from the first byte on
                    for write in writes.values():
                        write.do()
                    self._settle(writes)

            not_interrupted(idle)

    def _remade(self, writes: Mapping[str, _Write]) -> dict[str, _Write]:
        """The weights that are made of those that are written, where they will differ."""
        asked = dict.fromkeys(made for name in writes for made in self._made_of.get(name, ()))
        if not asked:
            return {}
        from recreplay.runtime.loading import as_segments_name

        # Of those that are lowered, nothing is made.
        done = {name: w.done() for name, w in writes.items() if name in self._made_of}
        tensors = as_segments_name({**self._tensors, **done}, self._constants, {})
        found = {}
        for name in asked:
            weight, how = self._results[name], self._made[name]
            what = f"weight {name!r}, which is made of {', '.join(how.weights)}"
            try:
                made = how.make(tensors)
            except (IndexError, RuntimeError) as error:
                raise RefreshError(f"{what}: {error}; nothing was written") from error
            found[name] = _changes(weight, weight.stored(what, made))
        return found

    def _settle(self, writes: Mapping[str, _Write]) -> None:
        """Bring up to date the copies of weights, and of the storages that they lie in, each once,
        before any replay reads it."""
        if self._copies:
            from recreplay.runtime.weight_copies import refresh_copies

            rows = {name: write.rows for name, write in writes.items()}
            storages = [self._storages[name] for name in writes if name in self._storages]
            for name in dict.fromkeys([*writes, *storages]):
                weight = self._tensors[name]
                refresh_copies(self._copies, name, weight, self._columns, rows.get(name))
        written = [self._tensors[name] for name in writes]
        if any(weight.is_cuda for weight in written):  # replays run on other streams
            import torch

            torch.cuda.current_stream(written[0].device).synchronize()

    def close(self) -> None:
        """Let go of the weights; those of the loader are the loader's to let go of."""
        self._closed = True
        self._weights.clear()
        self._results.clear()

    def _find(self, name: str) -> tuple[str, _Weight]:
        """The weight's own name, and the weight."""
        if self._closed:
            raise RuntimeClosedError(CLOSED)
        try:
            own = self._tied.get(name, name)
            return own, self._weights[own]
        except KeyError:
            known = ", ".join(sorted({*self._weights, *self._tied}))
            raise RefreshError(
                f"the captured model has no weight {name!r}; it has {known}"
            ) from None


def _changes(weight: _Weight, values: tuple[torch.Tensor, ...]) -> _Write:
    """Only the rows that differ from what is there, which of a large table may be few."""
    import torch

    if not weight.shape:
        return _Write(weight, values)
    pairs = zip(weight.parts, values, strict=True)
    differ = [(there != value).unsqueeze(-1).flatten(1).any(1) for there, value in pairs]
    rows = torch.stack(differ).any(0).nonzero().flatten()
    if len(rows) == weight.shape[0]:
        return _Write(weight, values)
    return _Write(weight, tuple(value[rows] for value in values), rows)


def _tensor(value: Any, what: str) -> torch.Tensor:
    import torch

    try:
        if isinstance(value, np.ndarray):
            value = plain_array(value)
            # What torch does not read: other byte orders and negative strides.
            value = np.ascontiguousarray(value, value.dtype.newbyteorder("="))
        tensor = value if isinstance(value, torch.Tensor) else torch.as_tensor(value, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise RefreshError(f"{what}: {error}; expected an array") from error
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested or tensor.is_quantized:
        others = {"nested": tensor.is_nested, "quantized": tensor.is_quantized}
        named = next((name for name, is_so in others.items() if is_so), str(tensor.layout))
        kind = "meta" if tensor.is_meta else named
        raise RefreshError(f"{what}: got a tensor of kind {kind}; expected one of plain numbers")
    return tensor.detach()


def _check_fit(what: str, value: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    import torch

    same_family = value.is_floating_point() == dtype.is_floating_point
    widens = same_family and torch.promote_types(value.dtype, dtype) == dtype
    if tuple(value.shape) != shape or not widens:
        name = str(dtype).removeprefix("torch.")
        raise RefreshError(
            f"{what}: got {_describe(value)}; expected {name}{list(shape)}, or a dtype that widens "
            "to it without loss"
        )


def _equal(one: torch.Tensor, other: torch.Tensor, dtype: torch.dtype) -> bool:
    """As values of `dtype`; NaN is equal to NaN."""
    import torch

    from recreplay.runtime.weights import memory_of

    if memory_of(one) == memory_of(other):
        return True
    left, right = (tensor.to("cpu", dtype) for tensor in (one, other))
    return torch.allclose(left, right, rtol=0, atol=0, equal_nan=True)


def _describe(value: torch.Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
