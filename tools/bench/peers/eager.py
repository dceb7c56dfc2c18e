"""The model itself: what every service starts from, and what all answers are checked against."""

from __future__ import annotations

from collections.abc import Mapping

from recreplay.tools.bench.peers.base import Array, Call, Subject
from recreplay.tools.bench.peers.torch_call import host_call


class Eager:
    name = "eager"
    about = "the module itself under inference_mode; arrays become tensors without a copy"
    records_graphs = False

    def absent(self, device: str) -> str | None:
        return None

    def load(self, subject: Subject) -> EagerModel:
        return EagerModel(subject)


class EagerModel:
    def __init__(self, subject: Subject) -> None:
        self._call = host_call(subject, subject.module)

    def prepare(self, example: Mapping[str, Array]) -> Call:
        return self._call

    def close(self) -> None:
        pass
