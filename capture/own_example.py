"""The example inputs that a model makes itself."""

from __future__ import annotations

import torch
from torch.export import ExportedProgram

from recreplay.capture.arguments import Example
from recreplay.capture.keyed_jagged import has_keyed, plain_inputs
from recreplay.runtime.errors import CaptureError

_FEW = 4
_MANY = 256  # rows, where capacities come from the lengths of the example


def own_example(model: torch.nn.Module | ExportedProgram) -> Example | None:
    """What the model's own `example_inputs(batch)` makes; None if it has no such method."""
    own = getattr(model, "example_inputs", None)
    if not callable(own):
        return None
    made: Example = own(_MANY if getattr(model, "jagged_inputs", None) else _FEW)
    if not isinstance(made, (dict, tuple, list)):
        raise CaptureError(
            f"{type(model).__name__}.example_inputs({_FEW}) returned {type(made).__name__}; "
            "expected a dict of tensors"
        )
    if has_keyed(made):
        made = own(_MANY)
    return made


def in_plain_tensors(model: torch.nn.Module) -> torch.nn.Module:
    """`model` as it is captured, where its own example has a `KeyedJaggedTensor`."""
    if not any(type(module).__module__.startswith("torchrec.") for module in model.modules()):
        return model
    plain: torch.nn.Module = plain_inputs(model, own_example(model))[0]
    return plain
