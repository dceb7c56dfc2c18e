"""An artifact as a Ray Serve application: replicas over many machines, scaled by what is asked.

    ray start --head
    serve run recreplay.tools.serve.ray_app:app artifact=/models/dlrm.rr max_replicas=8

Each replica holds one GPU, or as many CPUs as it has lanes. It answers `POST` with the body of the
Open Inference Protocol, and other deployments by `handle.infer.remote({"dense": ...})`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from recreplay.runtime import Runtime, Serving
from recreplay.runtime.artifact import open_artifact
from recreplay.runtime.errors import LanesLostError, RecReplayError
from recreplay.tools.serve.http_app import HEADER, header_length
from recreplay.tools.serve.protocol import (
    check_outputs,
    parse_infer,
    render_infer,
    select,
    tensors,
)
from recreplay.tools.serve.service import http_status, message

_ARGUMENTS = {
    "artifact": "",
    "serving": "",  # path of a serving.json
    "name": "",  # of the model, in answers; the artifact's if empty
    "min_replicas": "1",
    "max_replicas": "1",
    "ongoing_requests": "16",  # of a replica, above which another is started
}


class Replica:
    """One runtime in a process of its own."""

    def __init__(self, artifact: str, name: str, serving: dict[str, Any]) -> None:
        self._name = name
        self._runtime = Runtime.load(artifact, serving=Serving(**serving))

    async def infer(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """`Runtime.arun`, for other deployments."""
        return await self._runtime.arun(inputs)

    async def __call__(self, request: Request) -> Response:
        if request.method != "POST":
            manifest = self._runtime.manifest
            inputs, outputs = tensors(manifest.inputs), tensors(manifest.outputs)
            return JSONResponse({"name": self._name, "inputs": inputs, "outputs": outputs})
        try:
            asked = parse_infer(await request.body(), header_length(request))
            known = [spec.name for spec in self._runtime.manifest.outputs]
            check_outputs(asked.outputs, known, self._name)
            scores = await self._runtime.arun(asked.inputs, deadline_us=asked.deadline_us)
            chosen = select(scores, asked.outputs, self._name)
            body, head = render_infer(asked, self._name, "1", chosen)
        except Exception as error:
            return JSONResponse({"error": message(error)}, http_status(error))
        if head is None:
            return Response(body, media_type="application/json")
        headers = {HEADER: str(head)}
        return Response(body, headers=headers, media_type="application/octet-stream")

    def check_health(self) -> None:
        """Ray replaces a replica that raises here."""
        if not self._runtime.lanes_alive():
            raise LanesLostError("every lane of this replica has failed")

    def __del__(self) -> None:
        if hasattr(self, "_runtime"):
            self._runtime.close()


def app(arguments: dict[str, str]) -> serve.Application:
    """What `serve run` and `serve.run` take. Arguments are `_ARGUMENTS`; `artifact` is required."""
    unknown = sorted(arguments.keys() - _ARGUMENTS.keys())
    given = {**_ARGUMENTS, **arguments}
    if unknown or not given["artifact"]:
        what = f"unknown {', '.join(unknown)}" if unknown else "artifact=PATH is missing"
        raise RecReplayError(f"{what}; arguments are {', '.join(_ARGUMENTS)}")
    path = Path(given["artifact"]).absolute()
    serving = Serving.read(given["serving"]) if given["serving"] else Serving()
    on_gpu = open_artifact(path).manifest.device == "cuda"
    deployment = serve.deployment(
        name="recreplay",
        ray_actor_options={"num_gpus": 1} if on_gpu else {"num_cpus": serving.lanes},
        autoscaling_config={
            "min_replicas": int(given["min_replicas"]),
            "max_replicas": int(given["max_replicas"]),
            "target_ongoing_requests": float(given["ongoing_requests"]),
        },
        max_ongoing_requests=4 * int(given["ongoing_requests"]),
    )(Replica)
    bound: serve.Application = deployment.bind(
        str(path), given["name"] or path.stem, serving.to_json()
    )
    return bound
