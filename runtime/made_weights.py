"""Weights that are made of others: of what a model computes of its weights alone.

A layer with the normalisation behind it, a sum of low rank beside a weight, a table of unit rows,
positions that are looked up: made when a model is captured and again when a weight that they are
made of is refreshed, and read as any other weight meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from recreplay.runtime.aten import Operator, bind
from recreplay.runtime.errors import ArtifactCorruptError
from recreplay.runtime.modes import no_modes

WEIGHT = "weight:"


@dataclass(frozen=True)
class Made:
    """How a weight is made: operators in order, of which the last one gives it.

    They read `weight:NAME`, `const:KEY` and each other's results.
    """

    operators: tuple[Operator, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """What is read, each once."""
        results = {op.name for op in self.operators}
        used = (name for op in self.operators for name in op.uses())
        return tuple(dict.fromkeys(name for name in used if name not in results))

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the weights among what is read."""
        return tuple(s.removeprefix(WEIGHT) for s in self.sources if s.startswith(WEIGHT))

    def make(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The weight, contiguous. `tensors`: at least the sources, all on one device."""
        values = {name: tensors[name].detach() for name in self.sources}
        home = next(iter(values.values())).device
        # By ids that are weights: a wrong one would end every use of a GPU.
        by_ids = any(not values[WEIGHT + name].is_floating_point() for name in self.weights)
        device = torch.device("cpu") if by_ids else home
        with no_modes(), torch.no_grad():
            values = {name: value.to(device) for name, value in values.items()}
            made = bind(self.operators, values, [self.operators[-1].name], device)()[0]
            return made.contiguous().to(home)


def write_made(path: Path, made: Mapping[str, Made]) -> None:
    """`{NAME: operators}` as JSON."""
    data = {name: [op.to_json() for op in how.operators] for name, how in sorted(made.items())}
    path.write_text(json.dumps(data))


def read_made(path: Path) -> dict[str, Made]:
    """Inverse of `write_made`; nothing if there is no such file.

    Raises `ArtifactCorruptError` for a file that is anything else.
    """
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text())
        return {
            name: Made(tuple(Operator.from_json(op) for op in operators))
            for name, operators in data.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise ArtifactCorruptError(
            f"{path} does not say how weights are made: {error!r}"
        ) from error
