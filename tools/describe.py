"""An artifact as plain data: what `inspect --json` prints, and what its tables are made of."""

from __future__ import annotations

from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

from recreplay.runtime.artifact import CONSTANTS, MADE, WEIGHTS, Artifact
from recreplay.runtime.errors import RecReplayError
from recreplay.runtime.made_weights import read_made
from recreplay.runtime.manifest import Bucket, Manifest
from recreplay.runtime.portions import best_portion, measured_us
from recreplay.runtime.spec import total_bytes
from recreplay.runtime.weight_copies import copy_names
from recreplay.tools.files import folder_size
from recreplay.tools.strict import remarks
from recreplay.tools.weight_sizes import weight_sizes


def describe(path: Path, manifest: Manifest) -> dict[str, Any]:
    """Everything about an artifact but its plans' steps."""
    buckets = [describe_bucket(bucket, manifest) for bucket in manifest.buckets]
    return {
        "path": str(path),
        "model": manifest.model,
        "device": manifest.device,
        "strategy": manifest.strategy,
        "streams": manifest.streams,
        "compiler": manifest.compiler,
        "rewrites": list(manifest.rewrites),
        "precision": manifest.precision,
        "table_precision": manifest.table_precision,
        "max_error": manifest.max_error,
        "lowered": manifest.lowered,
        "capture_seconds": manifest.capture_seconds,
        "packages": len(manifest.packages),
        "disk_bytes": folder_size(path),
        "memory": _memory(path, manifest),
        "inputs": [
            {
                "name": s.name,
                "dtype": s.dtype,
                "row": list(s.row),
                "kind": s.kind,
                "user": s.user,
                "along": s.along,
                "capacity": s.capacity,
                "shape": s.describe(),
                "rows_of_table": _limits(s.name, manifest),
            }
            for s in manifest.inputs
        ],
        "users": manifest.users,
        "row_mask": manifest.mask_name,
        "outputs": [
            {"name": s.name, "dtype": s.dtype, "row": list(s.row)} for s in manifest.outputs
        ],
        "buckets": buckets,
        "stacks": _stacks(manifest),
        "environment": manifest.environment,
        "notices": remarks(manifest),
        "unchecked": list(manifest.unchecked),
    }


def describe_bucket(bucket: Bucket, manifest: Manifest) -> dict[str, Any]:
    """Counts of one bucket's plan, its memory, and how far it was from eager."""
    parity = next((p for p in manifest.parity if p.bucket == bucket.size), None)
    costs = measured_us(manifest)
    return {
        "size": bucket.size,
        "portion": best_portion(costs, bucket.size) if costs else bucket.size,
        "operators": sum(len(segment.operators) for segment in bucket.segments),
        "segments": len(bucket.segments),
        "packages": len({segment.package for segment in bucket.segments}),
        "streams": bucket.plan.streams,
        "waits": sum(len(step.waits) for step in bucket.plan.steps),
        "input_bytes": total_bytes(bucket.inputs),
        "output_bytes": total_bytes(bucket.outputs),
        "buffer_bytes": total_bytes(bucket.buffers),
        "parity": None if parity is None else asdict(parity),
        "candidates": [asdict(c) for c in manifest.candidates if c.bucket == bucket.size],
    }


def find_bucket(artifact: Artifact, size: int) -> Bucket:
    """The bucket of exactly this size; RecReplayError names those that there are."""
    for bucket in artifact.manifest.buckets:
        if bucket.size == size:
            return bucket
    sizes = ", ".join(str(b.size) for b in artifact.manifest.buckets)
    raise RecReplayError(f"{artifact.path} has no bucket {size}; its buckets are {sizes}")


def describe_plan(bucket: Bucket) -> list[dict[str, Any]]:
    """The steps of a plan in issue order: where each runs, what it waits for, what it computes."""
    steps = bucket.plan.steps
    return [
        {
            "step": position,
            "name": step.name,
            "stream": step.stream,
            "waits": [steps[at].name for at in step.waits],
            "package": segment.package,
            "operators": list(segment.operators),
            "inputs": list(segment.inputs),
            "outputs": list(segment.outputs),
        }
        for position, (step, segment) in enumerate(zip(steps, bucket.segments, strict=True))
    ]


def _memory(path: Path, manifest: Manifest) -> dict[str, int]:
    """What a runtime holds: weights, of which some are made of others, copies of them as products
    read them, and so much a lane. Buckets of a lane share their memory, so the largest counts."""
    weights = sum((path / name).stat().st_size for name in (WEIGHTS, CONSTANTS))
    sizes = weight_sizes(path / WEIGHTS, manifest.tables)
    copied = [name.partition(":") for name in copy_names(manifest)]
    staging_in = max(total_bytes(b.inputs) for b in manifest.buckets)
    staging_out = max(total_bytes(b.outputs) for b in manifest.buckets)
    buffers = max(total_bytes(b.buffers) for b in manifest.buckets)
    return {
        "weights_bytes": weights,
        "made_bytes": sum(sizes[name].bytes for name in read_made(path / MADE)),
        "copied_bytes": sum(sizes[name].copied("wide" in kind) for kind, _, name in copied),
        "staging_bytes": staging_in + staging_out,
        "buffer_bytes": buffers,
        "lane_bytes": staging_in + staging_out + buffers,
    }


def _limits(name: str, manifest: Manifest) -> list[dict[str, Any]]:
    return [
        {"table": b.table, "column": b.column, "axis": b.axis, "rows": b.rows, "least": b.least}
        for b in manifest.bounds
        if b.input == name
    ]


def _stacks(manifest: Manifest) -> list[dict[str, Any]]:
    """Tables that were stored as one, by the name of what they are stored in."""
    stacks: dict[str, list[str]] = {}
    rows: dict[str, int] = {}
    for name, view in manifest.tables.items():
        stacks.setdefault(view.storage, []).append(name)
        rows[view.storage] = max(rows.get(view.storage, 0), view.start + view.rows * prod(view.row))
    return [{"name": k, "tables": names, "rows": rows[k]} for k, names in stacks.items()]
