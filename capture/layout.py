"""Where every tensor of a bucket lies: packed inputs, buffers between segments, packed outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from recreplay.capture.program import Program
from recreplay.capture.segments import BoundSegment
from recreplay.runtime.manifest import Bucket, Segment
from recreplay.runtime.plan import Plan
from recreplay.runtime.spec import InputSpec, OutputSpec, Slot, align


def lay_out(
    program: Program,
    plan: Plan,
    segments: Sequence[BoundSegment],
    keys: Sequence[str],
    inputs: Sequence[InputSpec],
    outputs: Sequence[OutputSpec],
    users: int,
) -> Bucket:
    """The manifest's bucket: `keys[i]` names the package of `segments[i]`."""
    shapes = {s.name: s.staged(users if s.user else program.bucket) for s in inputs}
    input_slots, staged_slots = _inputs(program, inputs, shapes)
    sizes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for segment in segments:
        for name, kind in zip(segment.outputs, segment.code.outputs, strict=True):
            if name.startswith("buffer:"):
                sizes[name.removeprefix("buffer:")] = (kind.dtype, kind.shape)
    return Bucket(
        size=program.bucket,
        plan=plan,
        segments=tuple(
            Segment(s.name, key, s.inputs, s.outputs, s.operators)
            for s, key in zip(segments, keys, strict=True)
        ),
        inputs=input_slots,
        staged=staged_slots,
        buffers=_with_pieces(
            _packed([(name, dtype, shape) for name, (dtype, shape) in sizes.items()]), segments
        ),
        outputs=_packed([(o.name, o.dtype, (program.bucket, *o.row)) for o in outputs]),
    )


def _inputs(
    program: Program, inputs: Sequence[InputSpec], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[tuple[Slot, ...], tuple[Slot, ...]]:
    """Groups that are staged together side by side, each other input on a boundary of its own.

    What the program reads narrower than the model has it is staged so.
    """
    read = {
        str(node.target): str(node.meta["val"].dtype).removeprefix("torch.")
        for node in program.graph.find_nodes(op="placeholder")
    }
    dtypes = {spec.name: read.get(f"input:{spec.name}", spec.dtype) for spec in inputs}
    slots: dict[str, Slot] = {}
    staged = []
    end = 0
    for group, names in program.staged.items():
        end = start = align(end)
        for name in names:
            slots[name] = Slot(name, read[f"staged:{group}"], shapes[name], end)
            end += slots[name].nbytes
        first = slots[names[0]]
        items = (end - start) // (first.nbytes // _items(first))
        staged.append(Slot(group, first.dtype, (items,), start))
    for spec in inputs:
        if spec.name not in slots:
            end = align(end)
            slots[spec.name] = Slot(spec.name, dtypes[spec.name], shapes[spec.name], end)
            end += slots[spec.name].nbytes
    return tuple(slots[spec.name] for spec in inputs), tuple(staged)


def _with_pieces(buffers: tuple[Slot, ...], segments: Sequence[BoundSegment]) -> tuple[Slot, ...]:
    """The buffers, and the pieces of them that segments read as tensors of their own."""
    by_name = {slot.name: slot for slot in buffers}
    pieces = {piece.name: piece for segment in segments for piece in segment.pieces}
    slots = []
    for name, piece in pieces.items():
        whole = by_name[piece.buffer]
        row = whole.nbytes // whole.shape[0]
        kind = piece.type
        slots.append(Slot(name, kind.dtype, kind.shape, whole.offset + piece.start * row))
    return (*buffers, *slots)


def _items(slot: Slot) -> int:
    count = 1
    for d in slot.shape:
        count *= d
    return count


def _packed(items: Sequence[tuple[str, str, tuple[int, ...]]]) -> tuple[Slot, ...]:
    slots = []
    end = 0
    for name, dtype, shape in items:
        slot = Slot(name, dtype, shape, align(end))
        end = slot.offset + slot.nbytes
        slots.append(slot)
    return tuple(slots)
