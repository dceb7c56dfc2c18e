"""What the page is made of, which is also what `inspect --json` prints."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recreplay.runtime.artifact import Artifact
from recreplay.runtime.errors import InputError
from recreplay.runtime.graph import BucketGraph, read_graph
from recreplay.tools.describe import describe
from recreplay.tools.view.bucket import bucket_view, strategies
from recreplay.tools.view.measured import Measured


def overview(
    artifact: Artifact,
    graphs: Mapping[int, BucketGraph],
    measured: Mapping[int, Measured],
) -> dict[str, Any]:
    """The artifact, and for each bucket what it takes and what the strategies would."""
    summary = describe(artifact.path, artifact.manifest)
    for item in summary["buckets"]:
        found = measured.get(item["size"])
        item["replay_us"] = None if found is None else found.replay_us
        item["strategies"] = strategies(graphs.get(item["size"]))
    return summary


def page_data(
    artifact: Artifact,
    measured: Mapping[int, Measured],
    benches: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Everything the page shows."""
    graphs = read_graph(artifact.path)
    manifest = artifact.manifest
    return {
        "artifact": overview(artifact, graphs, measured),
        "buckets": [
            bucket_view(b, manifest, graphs.get(b.size), measured.get(b.size))
            for b in manifest.buckets
        ],
        "benches": list(benches),
    }


def read_bench(path: Path) -> dict[str, Any]:
    """A result file that `recreplay bench --out` wrote."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a result file: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("results"), list):
        raise InputError(f"{path} is not a result file of `recreplay bench --out`")
    return {"file": path.name, **data}


def finite(value: Any) -> Any:
    """The same data with `null` for what JSON has no number for."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
