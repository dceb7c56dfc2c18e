"""The manifest: everything an artifact says about itself, as frozen data that is also its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from recreplay.runtime.plan import Plan
from recreplay.runtime.processor import block_columns
from recreplay.runtime.spec import DTYPES, IdBound, InputSpec, OutputSpec, RowMask, Slot

FORMAT = "recreplay"
VERSION = 18


@dataclass(frozen=True, slots=True)
class Segment:
    """One call: a package over named tensors.

    `inputs` are read and `outputs` are written. Names say where the bytes are: `input:x`,
    `staged:g`, `weight:w`, `const:k`, `buffer:v` or `output:o`.
    """

    name: str
    package: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bucket:
    """A captured batch size: its plan (one step per segment), its segments and its memory
    layout."""

    size: int
    plan: Plan
    segments: tuple[Segment, ...]
    inputs: tuple[Slot, ...]
    staged: tuple[Slot, ...]
    buffers: tuple[Slot, ...]
    outputs: tuple[Slot, ...]

    def wide(self, specs: Sequence[InputSpec]) -> dict[str, np.dtype[Any]]:
        """The dtypes of inputs whose ids are wider in requests than they are staged, by name."""
        staged = {slot.name: slot.dtype for slot in self.inputs}
        return {s.name: DTYPES[s.dtype] for s in specs if staged[s.name] != s.dtype}


@dataclass(frozen=True, slots=True)
class Package:
    """A compiled segment: `compiler` is `eager` (one JSON file), `inductor` or `tensorrt` (a
    folder)."""

    compiler: str
    path: str


@dataclass(frozen=True, slots=True)
class TableView:
    """A weight that is `rows` rows of the tensor `storage`, from its row `start` on.

    Where the storage is flat, `row` is the shape of a row, and `start` counts elements; else rows
    are those of the storage. The storage may be a view itself, which then comes before.
    """

    storage: str
    start: int
    rows: int
    row: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class OutputParity:
    """One output of a bucket: its largest error, and `scale`, the largest size of the eager output.

    `atol` is how far the self-test at load lets it be from the stored answer.
    """

    output: str
    max_abs: float
    scale: float
    atol: float


@dataclass(frozen=True, slots=True)
class Parity:
    """Replay against the eager model: the largest errors seen over `requests` requests."""

    bucket: int
    requests: int
    max_abs: float
    max_rel: float
    rtol: float
    atol: float
    outputs: tuple[OutputParity, ...]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Parity:
        outputs = tuple(OutputParity(**o) for o in data["outputs"])
        return cls(**{**data, "outputs": outputs})


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run a bucket that the tuner looked at.

    `us` is the median of a request, filling included, without the rest of `Runtime.run`; None where
    it was not measured, and `note` says why. `modelled_us` is the cost model's makespan.
    """

    bucket: int
    rewrites: tuple[str, ...]
    strategy: str
    streams: int
    compiler: str
    modelled_us: float
    us: float | None
    chosen: bool
    note: str
    precision: str = "fp32"  # of its matrix products

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Candidate:
        return cls(**{**data, "rewrites": tuple(data["rewrites"])})


@dataclass(frozen=True, slots=True)
class Manifest:
    model: str
    device: str
    strategy: str
    streams: int
    compiler: str
    rewrites: tuple[str, ...]
    environment: dict[str, str]
    inputs: tuple[InputSpec, ...]  # of requests
    outputs: tuple[OutputSpec, ...]
    bounds: tuple[IdBound, ...]
    unchecked: tuple[
        str, ...
    ]  # tables whose ids are computed, so that no request check covers them
    tables: dict[str, TableView]
    packages: dict[str, Package]
    buckets: tuple[Bucket, ...]  # ascending
    parity: tuple[Parity, ...]
    notices: tuple[str, ...]  # what was done otherwise than asked, in words
    capture_seconds: float
    users: int = 0  # the most users of one request; 0 where the model has no user side
    candidates: tuple[Candidate, ...] = ()  # what the tuner measured; empty where it was off
    precision: str = "fp32"  # of the trunk's matrix products: fp32, tf32, bf16 or fp16
    table_precision: str = "fp32"  # fp32, fp16 or int8
    max_error: float | None = None  # the bound of errors over scales; None if nothing is lowered
    lowered: dict[str, str] = field(default_factory=dict)  # weight -> type it is stored in
    tied: dict[str, str] = field(default_factory=dict)  # other names of weights -> the weight
    unread: tuple[str, ...] = ()  # weights of the model that no bucket reads
    settled: dict[str, str] = field(default_factory=dict)  # weight -> digest of what it has to be
    row_mask: RowMask | None = None  # where rows of a request are compared: it is one replay then
    files: dict[str, str] = field(default_factory=dict)  # path -> sha256

    @property
    def block_columns(self) -> int:
        """Of packed weights, as packages read them."""
        return block_columns(self.environment.get("instructions", "").split())

    @property
    def mask_name(self) -> str | None:
        """The row mask's name; None where the model has none."""
        return None if self.row_mask is None else self.row_mask.name

    @property
    def model_inputs(self) -> tuple[InputSpec, ...]:
        """What the model itself takes, in its order, and what the runtime makes of it."""
        if self.row_mask is None:
            return self.inputs
        inputs = list(self.inputs)
        inputs.insert(self.row_mask.at, InputSpec(self.row_mask.name, "bool", (), "mask"))
        return tuple(inputs)

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        for bucket, plain in zip(self.buckets, data["buckets"], strict=True):
            plain["plan"] = bucket.plan.to_json()
        return {"format": FORMAT, "version": VERSION, **data}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Manifest:
        """Inverse of `to_json`; raises KeyError, TypeError or ValueError on anything else."""
        return cls(
            model=data["model"],
            device=data["device"],
            strategy=data["strategy"],
            streams=data["streams"],
            compiler=data["compiler"],
            rewrites=tuple(data["rewrites"]),
            environment=dict(data["environment"]),
            inputs=tuple(InputSpec(**_shaped(i, "row")) for i in data["inputs"]),
            outputs=tuple(OutputSpec(**_shaped(o, "row")) for o in data["outputs"]),
            bounds=tuple(IdBound(**b) for b in data["bounds"]),
            unchecked=tuple(data["unchecked"]),
            tables={k: TableView(**_shaped(v, "row")) for k, v in data["tables"].items()},
            packages={k: Package(**v) for k, v in data["packages"].items()},
            buckets=tuple(_bucket(b) for b in data["buckets"]),
            parity=tuple(Parity.from_json(p) for p in data["parity"]),
            notices=tuple(data["notices"]),
            capture_seconds=data["capture_seconds"],
            users=data["users"],
            candidates=tuple(Candidate.from_json(c) for c in data["candidates"]),
            precision=data["precision"],
            table_precision=data["table_precision"],
            max_error=data["max_error"],
            lowered=dict(data["lowered"]),
            tied=dict(data["tied"]),
            unread=tuple(data["unread"]),
            settled=dict(data["settled"]),
            row_mask=None if data["row_mask"] is None else RowMask(**data["row_mask"]),
            files=dict(data["files"]),
        )


def _bucket(data: dict[str, Any]) -> Bucket:
    slots = {
        k: tuple(Slot(**_shaped(s, "shape")) for s in data[k])
        for k in ("inputs", "staged", "buffers", "outputs")
    }
    segments = tuple(
        Segment(
            s["name"], s["package"], tuple(s["inputs"]), tuple(s["outputs"]), tuple(s["operators"])
        )
        for s in data["segments"]
    )
    return Bucket(data["size"], Plan.from_json(data["plan"]), segments, **slots)


def _shaped(data: dict[str, Any], key: str) -> dict[str, Any]:
    return {**data, key: tuple(data[key])}
