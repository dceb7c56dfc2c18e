"""What a model makes of a request of one row, where it takes several alone.

A `squeeze()` without a dimension takes away the batch too where that is 1: the output is then a
number and not `[1]`, or what comes after the squeeze fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from recreplay.runtime.errors import RecReplayError
from recreplay.runtime.spec import OutputSpec

Eager = Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]


def of_any_rows(
    eager: Eager, example: Mapping[str, torch.Tensor], outputs: Sequence[OutputSpec]
) -> tuple[Eager, str | None]:
    """`eager` as it is where it gives `outputs` for the first row of `example` alone. Otherwise it
    with one row given twice, and what is to be said of that."""
    row = {name: tensor[:1].clone() for name, tensor in example.items()}
    problem = _problem(eager, row, outputs)
    if problem is None or _problem(_twice(eager), row, outputs) is not None:
        return eager, None
    note = (
        f"the model itself {problem} for a request of 1 row, as a squeeze() without a dimension "
        "has it; captured is what it makes of a row beside others"
    )
    return _twice(eager), note


def _problem(
    eager: Eager, row: Mapping[str, torch.Tensor], outputs: Sequence[OutputSpec]
) -> str | None:
    try:
        produced = eager(row)
    except RecReplayError:
        raise
    except Exception as error:
        text = next(iter(str(error).splitlines()), "")
        return f"fails ({type(error).__name__}: {text})"
    for spec in outputs:
        shape = tuple(produced[spec.name].shape) if spec.name in produced else None
        if shape != (1, *spec.row):
            return f"gives output {spec.name!r} of shape {shape}"
    return None


def _twice(eager: Eager) -> Eager:
    def run(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if any(tensor.shape[0] != 1 for tensor in inputs.values()):
            return eager(inputs)
        pair = {name: tensor.repeat_interleave(2, dim=0) for name, tensor in inputs.items()}
        return {name: value[:1] for name, value in eager(pair).items()}

    return run
