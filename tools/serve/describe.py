"""Metadata and configuration of a model as the protocol's JSON."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from recreplay.runtime import ModelRepository, Runtime
from recreplay.runtime.repository import Served
from recreplay.tools.serve.protocol import EXTENSIONS, PLATFORM, tensors

_KINDS = {"cpu": "KIND_CPU", "cuda": "KIND_GPU"}


def server() -> dict[str, Any]:
    try:
        version = metadata.version("recreplay")
    except metadata.PackageNotFoundError:
        version = "source"
    return {"name": "recreplay", "version": version, "extensions": list(EXTENSIONS)}


def model(name: str, served: Served) -> dict[str, Any]:
    takes, gives = served.tensors()
    return {
        "name": name,
        "versions": [served.version],
        "platform": PLATFORM,
        "inputs": tensors(takes),
        "outputs": tensors(gives),
    }


def config(name: str, served: Served) -> dict[str, Any]:
    """What Triton's model configuration has a name for, and ours as its parameters.

    `max_batch_size` is 0, because batches of any size are taken: shapes hold the -1 themselves.
    Parameters of a funnel have the name of their stage in front.
    """
    takes, gives = served.tensors()
    stages = served.stages(name)
    parameters: dict[str, str] = {}
    for of, runtime in stages.items():
        _, _, stage = of.partition("/")
        front = f"{stage}." if stage else ""
        parameters |= {f"{front}{key}": value for key, value in _parameters(runtime).items()}
    found: dict[str, Any] = {
        "name": name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "version_policy": {"specific": {"versions": [int(served.version)]}},
        "max_batch_size": 0,
        "input": [_tensor(t) for t in tensors(takes)],
        "output": [_tensor(t) for t in tensors(gives)],
        "instance_group": [
            {"name": of, "kind": _KINDS[runtime.manifest.device], "count": runtime.serving.lanes}
            for of, runtime in stages.items()
        ],
        "parameters": {k: {"string_value": v} for k, v in parameters.items()},
    }
    delays = [runtime.serving.max_delay_us for runtime in stages.values()]
    if packs := [delay for delay in delays if delay is not None]:
        found["dynamic_batching"] = {"max_queue_delay_microseconds": max(packs)}
    return found


def _parameters(runtime: Runtime) -> dict[str, str]:
    manifest = runtime.manifest
    return {
        "buckets": ",".join(str(b.size) for b in manifest.buckets),
        "device": manifest.device,
        "compiler": manifest.compiler,
        "strategy": manifest.strategy,
        **{k: str(v) for k, v in runtime.serving.to_json().items() if v is not None},
    }


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
