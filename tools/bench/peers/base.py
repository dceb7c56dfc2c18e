"""What a benchmark needs of whatever it measures: made once, then a call from numpy to numpy."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from recreplay.capture import Jagged
    from recreplay.capture.ingest import Ingested
    from recreplay.runtime.artifact import Artifact
    from recreplay.runtime.manifest import Manifest
    from recreplay.tools.target import Target

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
Call = Callable[[Mapping[str, Array]], Arrays]


class Loaded(Protocol):
    """A model made ready by a peer."""

    def prepare(self, example: Mapping[str, Array]) -> Call:
        """A call for requests of the batch size of `example`; compiles where the peer compiles for
        one size. It takes arrays on the host by input name and returns arrays on the host by
        output name, which the next call may overwrite."""

    def close(self) -> None: ...


class Peer(Protocol):
    """One way to serve a model."""

    name: str
    about: str  # what it is, and what is inside of a timed call
    records_graphs: bool  # on CUDA it records graphs of its own, so it runs in its own process

    def absent(self, device: str) -> str | None:
        """Why it cannot run here at all; None if it can."""

    def load(self, subject: Subject) -> Loaded:
        """Make the model ready; may raise anything, which is then the reason of its absence."""


@dataclass(frozen=True)
class Subject:
    """The model that every peer serves in one benchmark."""

    target: Target
    artifact: Path  # what capture made of it, which is our own side
    device: str
    folder: Path  # for files that peers write

    @cached_property
    def captured(self) -> Artifact:
        from recreplay.runtime.artifact import open_artifact

        return open_artifact(self.artifact)

    @property
    def manifest(self) -> Manifest:
        return self.captured.manifest

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """What the model itself takes, in the order of the artifact."""
        from recreplay.tools.bench.requests import model_inputs

        return model_inputs(self.manifest)

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.manifest.outputs)

    @property
    def jagged(self) -> list[str]:
        """Inputs whose number of values differs from request to request."""
        return [spec.name for spec in self.manifest.inputs if spec.kind == "values"]

    @cached_property
    def module(self) -> torch.nn.Module:
        """The model on its device: itself on the CPU, elsewhere one copy for all."""
        import torch
        from torch.export import ExportedProgram

        from recreplay.tools.bench.eager import on_device

        model = self.target.model
        module = model.module() if isinstance(model, ExportedProgram) else model
        assert isinstance(module, torch.nn.Module)
        return module if self.device == "cpu" else on_device(module, torch.device(self.device))

    @cached_property
    def ingested(self) -> Ingested:
        """The model with a dynamic batch, made once for all."""
        return self.ingest()

    @property
    def exported(self) -> ExportedProgram:
        return self.ingested.exported

    @cached_property
    def ingested_as_captured(self) -> Ingested:
        """The same with the user side, if there is one."""
        if not self.manifest.users:
            return self.ingested
        users = [spec.name for spec in self.manifest.inputs if spec.user]
        return self.ingest(user_inputs=users, users=self.manifest.users)

    def ingest(self, **user_side: Any) -> Ingested:
        """Export the model, where it runs, by capture's own front end."""
        import torch
        from torch.export import ExportedProgram
        from torch.export.passes import move_to_device_pass
        from torch.utils._pytree import tree_map_only

        from recreplay.capture.ingest import ingest
        from recreplay.capture.own_example import own_example

        model = self.target.model
        if self.device != "cpu":
            model = (
                move_to_device_pass(model, self.device)
                if isinstance(model, ExportedProgram)
                else self.module
            )
        with contextlib.redirect_stdout(sys.stderr):  # what the user's model prints
            example = own_example(self.target.model) or self._stored()
            # A dict or a tuple, in which there may be lists.
            on_device = tree_map_only(torch.Tensor, lambda t: t.to(self.device), example)
            return ingest(
                model,
                on_device,
                jagged=self._declared(),
                row_mask=self.manifest.mask_name,
                **user_side,
            )

    def _declared(self) -> list[Jagged]:
        from recreplay.capture import Jagged

        kinds = {spec.name: spec.kind for spec in self.manifest.inputs}
        return [
            Jagged(
                spec.name,
                **{"lengths" if kinds[spec.along] == "lengths" else "offsets": spec.along},
                capacity=spec.capacity,
            )
            for spec in self.manifest.inputs
            if spec.kind == "values"
        ]

    def _stored(self) -> dict[str, Any]:
        """The largest request that the artifact stores, for models that make none."""
        from safetensors.torch import load_file

        from recreplay.runtime.artifact import SELFTEST, stored_request
        from recreplay.tools.bench.requests import as_the_model_takes_them

        manifest, largest = self.manifest, self.manifest.buckets[-1].size
        request = stored_request(load_file(self.artifact / SELFTEST), largest)
        (plain,) = as_the_model_takes_them(manifest, [request])
        return plain
