"""A lane: one recorded graph per bucket over buffers of its own. Weights are shared by lanes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Protocol

import numpy as np
import torch

from recreplay.runtime.artifact import stored_request
from recreplay.runtime.borrow import Views
from recreplay.runtime.devices.base import Device, Graph, Launch
from recreplay.runtime.feeding import Feeder, tensor_view
from recreplay.runtime.fill import Check, Fill, Filler
from recreplay.runtime.manifest import Bucket, Manifest
from recreplay.runtime.metrics import Metrics
from recreplay.runtime.mixed import (
    MixedFill,
    MixedFiller,
    make_checker,
    make_fillers,
    rows_needed,
)
from recreplay.runtime.native_fill import FillLibrary, NativeFill
from recreplay.runtime.plan import check_plan
from recreplay.runtime.record import issue
from recreplay.runtime.room import Room
from recreplay.runtime.segments import LoadedPackage
from recreplay.runtime.spec import total_bytes
from recreplay.runtime.tf32 import products_in

Array = np.ndarray[Any, Any]


_PREPARED = 2048  # views that are kept, two of them for most numbers of rows


class Closeable(Protocol):
    def close(self) -> None: ...


@dataclass(frozen=True)
class _Captured:
    filler: Filler | MixedFiller
    graph: Graph
    # Made when it is first asked for, which on a CPU is never. None where inputs do not all have a
    # row for each row of a request.
    feeder: Callable[[], Feeder] | None
    inputs: list[tuple[str, Array]]  # what borrowers write to, full bucket
    outputs: list[tuple[str, Array]]
    mask: Array | None  # which rows are the request's, full bucket; None where no model asks


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that a request of one number of rows needs, looked up once."""

    bucket: int
    rows: int
    fill: Fill | NativeFill | MixedFill
    replay: Launch
    replay_fed: Launch
    outputs: list[tuple[str, Array]]  # host views of the rows asked for; overwritten by the next
    counted_as: tuple[int, int]  # bucket and rows


@dataclass(frozen=True, slots=True)
class Lent:
    """The same for who writes a request himself."""

    prepared: Prepared
    # Host views, or memory beside it where ids are staged narrower than a request has them.
    inputs: Views
    fill: Callable[[], int]  # after they were written to


def _masked(replay: Launch, mask: Array, n: int) -> None:
    mask[:n] = True
    mask[n:] = False
    replay()


class Lane:
    """Captures every bucket, largest first, over one set of buffers that all buckets share.

    Buckets of a lane never run at the same time, so they may use the same memory.
    """

    def __init__(
        self,
        manifest: Manifest,
        device: Device,
        packages: Mapping[str, LoadedPackage],
        tensors: Mapping[str, torch.Tensor],
        check: Check,
        stored: Mapping[str, Array],
        library: FillLibrary | None = None,
    ) -> None:
        """`stored`: a request for each bucket, as an artifact keeps them. Recording runs what it
        records, and a model may compute ids of its inputs that zeros do not give."""
        self._in = device.staging(max(total_bytes(b.inputs) for b in manifest.buckets))
        self._out = device.staging(max(total_bytes(b.outputs) for b in manifest.buckets))
        arena = max(total_bytes(b.buffers) for b in manifest.buckets)
        self._arena = torch.zeros(arena, dtype=torch.uint8, device=device.torch_device)
        largest = max(manifest.buckets, key=lambda b: b.size)
        wide = {name: t for b in manifest.buckets for name, t in b.wide(manifest.inputs).items()}
        # Of the system, which gives no pages before somebody borrows.
        self._wide = {
            slot.name: np.zeros(slot.shape, wide[slot.name])
            for slot in largest.inputs
            if slot.name in wide
        }
        self.nbytes = self._in.device.numel() + self._out.device.numel() + arena
        # A recorded graph knows addresses alone, so what it reads lives as long as the lane.
        self._tensors = dict(tensors)
        self.own_tensor = device.own_tensor
        self.metrics = Metrics()
        self.resources: list[Closeable] = []  # what goes when the lane goes, in this order
        self._captured: dict[int, _Captured] = {}
        fillers = make_fillers(manifest, self._in.host, check, library)
        self.needed = rows_needed(fillers[largest.size])
        checker = make_checker(manifest, "error")
        mask_name = manifest.mask_name
        memory = self._in.host
        for bucket in sorted(manifest.buckets, key=lambda b: b.size, reverse=True):
            launches = self._bind(bucket, packages, tensors)
            check_plan(bucket.plan)
            part = self._in.part(total_bytes(bucket.inputs))
            outputs_part = self._out.part(total_bytes(bucket.outputs))
            queue = partial(issue, bucket.plan, launches, part, outputs_part)
            filler = fillers[bucket.size]
            arrays, rows = checker.check(stored_request(stored, bucket.size))
            filler.prepare(rows)(arrays)
            mask = next((s.view(memory) for s in bucket.inputs if s.name == mask_name), None)
            if mask is not None:
                mask[:] = True
            with products_in(manifest.precision):
                graph = device.record(bucket.plan.streams, queue)
            wide = bucket.wide(manifest.inputs)
            inputs = [
                (s.name, self._wide[s.name] if s.name in wide else s.view(memory))
                for s in bucket.inputs
                if s.name != mask_name
            ]
            outputs = [(slot.name, slot.view(self._out.host)) for slot in bucket.outputs]
            feeder = None
            if isinstance(filler, Filler):
                feeder = cache(partial(Feeder, bucket, filler, part, device, mask_name))
            self._captured[bucket.size] = _Captured(filler, graph, feeder, inputs, outputs, mask)
        self._sizes = sorted(self._captured)
        # By bucket and rows, and by rows alone what the smallest bucket has for so many.
        self._prepared: dict[tuple[int, int] | int, Prepared] = {}
        self._lent: dict[int, Lent] = {}
        # By bucket, rows and users: with all the room that there is for jagged values.
        self._rooms: dict[tuple[int, int, int], tuple[Prepared, dict[str, Array]]] = {}

    def prepare(self, n: int) -> Prepared:
        """The smallest bucket that holds `n` rows, and its views of so many."""
        found = self._prepared.get(n)
        if found is None:
            found = self.prepare_in(self._sizes[bisect_left(self._sizes, n)], n)
            self._prepared[n] = found
        return found

    def prepare_in(self, size: int, n: int) -> Prepared:
        """Bucket `size`, whether or not a smaller one would do."""
        found = self._prepared.get((size, n))
        if found is None:
            if len(self._prepared) >= _PREPARED:
                self._prepared.clear()
            captured = self._captured[size]
            found = self._prepared[size, n] = Prepared(
                size,
                n,
                captured.filler.prepare(n),
                captured.graph.replay
                if captured.mask is None
                else partial(_masked, captured.graph.replay, captured.mask, n),
                captured.graph.replay_fed,
                [(name, view[:n]) for name, view in captured.outputs],
                (size, n),
            )
        return found

    def lend(self, n: int) -> Lent:
        """`prepare` for a borrow, where every input has a row for each of it."""
        found = self._lent.get(n)
        if found is None:
            prepared = self.prepare(n)
            captured = self._captured[prepared.bucket]
            inputs = {name: view[:n] for name, view in captured.inputs}
            filler, fill = captured.filler, prepared.fill
            assert isinstance(filler, Filler)
            assert not isinstance(fill, MixedFill)
            again = fill.lend(tuple(inputs[name] for name in filler.order))
            if len(self._lent) >= _PREPARED:
                self._lent.clear()
            found = self._lent[n] = Lent(prepared, Views(inputs), again)
        return found

    def lend_room(self, room: Room) -> Lent:
        """The same where some inputs have other numbers of items."""
        key = room.bucket, room.rows, room.users
        found = self._rooms.get(key)
        if found is None:
            captured = self._captured[room.bucket]
            assert isinstance(captured.filler, MixedFiller)
            whole = dict(captured.inputs)
            views = {
                spec.name: whole[spec.name][: room.items(spec)]
                for spec in captured.filler.order.specs
            }
            if len(self._rooms) >= _PREPARED:
                self._rooms.clear()
            found = self._rooms[key] = (self.prepare_in(room.bucket, room.rows), views)
        prepared, views = found
        inputs = Views(views | {name: views[name][:count] for name, count in room.values.items()})
        return Lent(prepared, inputs, partial(prepared.fill, tuple(inputs.values())))

    def feeder(self, size: int) -> Feeder:
        """What fills bucket `size` with requests that are on the device in part."""
        make = self._captured[size].feeder
        assert make is not None  # the checker brings inputs that are not by row to the host
        return make()

    def host_inputs(self) -> Array:
        """The staging bytes of this lane's requests."""
        return self._in.host

    def close(self) -> None:
        for captured in self._captured.values():
            captured.graph.close()
        self._captured.clear()
        self._prepared.clear()
        self._lent.clear()
        self._rooms.clear()
        self._tensors.clear()
        for resource in self.resources:
            resource.close()
        self.resources.clear()

    def _bind(
        self,
        bucket: Bucket,
        packages: Mapping[str, LoadedPackage],
        tensors: Mapping[str, torch.Tensor],
    ) -> list[Launch]:
        values = dict(tensors)
        for kind, slots, memory in (
            ("input", bucket.inputs, self._in.device),
            ("staged", bucket.staged, self._in.device),
            ("output", bucket.outputs, self._out.device),
            ("buffer", bucket.buffers, self._arena),
        ):
            for slot in slots:
                values[f"{kind}:{slot.name}"] = tensor_view(memory, slot)
        return [
            packages[s.package].bind([values[n] for n in s.inputs], [values[n] for n in s.outputs])
            for s in bucket.segments
        ]
