"""A bucket's staging memory, and what fills it, without a model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from recreplay.capture.compilers import c_library
from recreplay.runtime.fill import Check, Filler
from recreplay.runtime.manifest import Bucket
from recreplay.runtime.native_fill import FillLibrary, load_fill_library
from recreplay.runtime.plan import Plan
from recreplay.runtime.spec import IdBound, InputSpec, Slot, align, total_bytes

NO_PLAN = Plan("single", (), ())


HELPERS = 3


def load_sharing(folder: Path) -> FillLibrary | None:
    """The library with helpers, and so changed that they share requests of 8 bytes and more,
    in pieces of 8."""
    sources = Path(c_library.__file__).parent
    for name in ("fill.c", "fill_rows.h", "fill_mixed.h", "crew.h"):
        text = (sources / name).read_text()
        for constant, value in (("UNLOCKED_FROM", 0), ("SHARED_FROM", 8), ("SHARE", 8)):
            text = re.sub(rf"(?m)^(#define {constant}) \d+", rf"\1 {value}", text)
        (folder / name).write_text(text)
    compiler = c_library.cxx_compiler()
    assert compiler is not None
    path = folder / "sharing.so"
    path.write_bytes(c_library._compiled(compiler, folder / "fill.c"))
    return load_fill_library(path, HELPERS)


def bucket(size: int, inputs: list[tuple[str, str, tuple[int, ...]]], staged: int = 0) -> Bucket:
    """Inputs `(name, dtype, row)`; the first `staged` lie side by side."""
    slots, end = [], 0
    for i, (name, dtype, row) in enumerate(inputs):
        end = end if i < staged else align(end)
        slots.append(Slot(name, dtype, (size, *row), end))
        end += slots[-1].nbytes
    groups: tuple[Slot, ...] = ()
    if staged:
        last = slots[staged - 1]
        items = (last.offset + last.nbytes) // 8
        groups = (Slot("group", "int64", (items,), 0),)
    return Bucket(size, NO_PLAN, (), tuple(slots), groups, (), ())


def at_odd_bytes(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same numbers where a message may have them."""
    raw = np.frombuffer(b"\0" + array.tobytes(), np.uint8)[1:]
    return raw.view(array.dtype).reshape(array.shape)


def spec(slot: Slot, dtype: str) -> InputSpec:
    return InputSpec(slot.name, dtype, slot.shape[1:])


class Staged:
    library: ClassVar[FillLibrary | None] = None

    def __init__(
        self, made: Bucket, bounds: list[IdBound], check: Check = "error", wide: str = ""
    ) -> None:
        """`wide`: inputs whose requests are int64."""
        self.memory = np.full(total_bytes(made.inputs), 0xEE, dtype=np.uint8)
        self.order = [slot.name for slot in made.inputs]
        specs = [spec(s, "int64" if s.name in wide else s.dtype) for s in made.inputs]
        self.filler = Filler(made, specs, bounds, self.memory, check, self.library)
        self.views = {slot.name: slot.view(self.memory) for slot in made.inputs}

    def fill(self, rows: int, **values: Any) -> int:
        return self.filler.prepare(rows)([values[name] for name in self.order])
