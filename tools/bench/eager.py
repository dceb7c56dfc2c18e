"""The model as it is, ready to be timed: nothing but the call itself is inside of the timer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from recreplay.capture.arguments import forward_arguments, name_outputs

if TYPE_CHECKING:
    from recreplay.tools.target import Target

Array = np.ndarray[Any, Any]
Call = Callable[[], Any]


def on_device(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """A copy of a module whose weights and buffers are on `device`, without one on the host, where
    tables of gigabytes would be there twice."""
    moved: dict[int, Any] = {id(tensor): tensor.to(device) for tensor in module.buffers()}
    for weight in module.parameters():
        there = weight.detach().to(device)
        moved[id(weight)] = torch.nn.Parameter(there, requires_grad=weight.requires_grad)
    return copy.deepcopy(module, moved)


class EagerModel:
    """Calls of the original model, prepared so that naming and nesting of inputs cost nothing.

    On a GPU a call takes host tensors and ends with its results on the host, as a replay does.
    `inputs` are the input names in the order of the artifact.
    """

    def __init__(self, target: Target, device: str, inputs: Sequence[str]) -> None:
        self._device = torch.device(device)
        self._on_host = self._device.type == "cpu"
        self._inputs = tuple(inputs)
        model = target.model
        self._program = model if isinstance(model, ExportedProgram) else None
        module = model.module() if isinstance(model, ExportedProgram) else model
        self._module = module if self._on_host else on_device(module, self._device)

    def prepare(self, request: Mapping[str, Tensor]) -> Call:
        """A call of the model on one request. Run it in `torch.inference_mode`."""
        if self._on_host:
            args, kwargs = self._nest(request)
            return lambda: self._module(*args, **kwargs)
        return lambda: self._round_trip(request)

    def arrays(self, result: Any) -> dict[str, Array]:
        """What a call returned, by output name."""
        return {k: v.detach().cpu().numpy() for k, v in name_outputs(result).items()}

    def _nest(self, request: Mapping[str, Tensor]) -> tuple[Sequence[Any], Mapping[str, Any]]:
        if self._program is not None:
            leaves = [request[name] for name in self._inputs]
            nested: tuple[Sequence[Any], Mapping[str, Any]] = pytree.tree_unflatten(
                leaves, self._program.call_spec.in_spec
            )
            return nested
        return (), forward_arguments(self._module, request)

    def _round_trip(self, request: Mapping[str, Tensor]) -> dict[str, Tensor]:
        placed = {k: v.to(self._device, non_blocking=True) for k, v in request.items()}
        args, kwargs = self._nest(placed)
        return {k: v.cpu() for k, v in name_outputs(self._module(*args, **kwargs)).items()}
