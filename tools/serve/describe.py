"""Metadata and configuration of a model as the protocol's JSON."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from recreplay.runtime import ModelRepository
from recreplay.runtime.repository import Served
from recreplay.tools.serve.protocol import EXTENSIONS, PLATFORM, tensors


def server() -> dict[str, Any]:
    try:
        version = metadata.version("recreplay")
    except metadata.PackageNotFoundError:
        version = "source"
    return {"name": "recreplay", "version": version, "extensions": list(EXTENSIONS)}


def model(name: str, served: Served) -> dict[str, Any]:
    inputs, outputs = tensors(served.runtime.manifest)
    return {
        "name": name,
        "versions": [served.version],
        "platform": PLATFORM,
        "inputs": inputs,
        "outputs": outputs,
    }


def config(name: str, served: Served) -> dict[str, Any]:
    """What Triton's model configuration has a name for, and ours as its parameters.

    `max_batch_size` is 0, because batches of any size are taken: shapes hold the -1 themselves.
    """
    manifest, serving = served.runtime.manifest, served.runtime.serving
    inputs, outputs = tensors(manifest)
    parameters = {
        "buckets": ",".join(str(b.size) for b in manifest.buckets),
        "device": manifest.device,
        "compiler": manifest.compiler,
        "strategy": manifest.strategy,
        **{k: str(v) for k, v in serving.to_json().items() if v is not None},
    }
    kind = "KIND_GPU" if manifest.device == "cuda" else "KIND_CPU"
    found: dict[str, Any] = {
        "name": name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "version_policy": {"specific": {"versions": [int(served.version)]}},
        "max_batch_size": 0,
        "input": [_tensor(t) for t in inputs],
        "output": [_tensor(t) for t in outputs],
        "instance_group": [{"name": name, "kind": kind, "count": serving.lanes}],
        "parameters": {k: {"string_value": v} for k, v in parameters.items()},
    }
    if serving.max_delay_us is not None:
        found["dynamic_batching"] = {"max_queue_delay_microseconds": serving.max_delay_us}
    return found


def index(repository: ModelRepository, only_ready: bool) -> list[dict[str, str]]:
    return [
        {"name": s.name, "version": s.version, "state": s.state, "reason": s.reason}
        for s in repository.index()
        if s.state == "READY" or not only_ready
    ]


def _tensor(tensor: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": tensor["name"],
        "data_type": f"TYPE_{tensor['datatype']}",
        "dims": tensor["shape"],
    }
