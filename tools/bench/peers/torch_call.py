"""From named numpy arrays to a call of a torch function, and back, with as little as possible in
between: what a careful service would write by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from recreplay.capture.arguments import forward_arguments, name_outputs
from recreplay.tools.bench.peers.base import Array, Arrays, Call, Subject

Nest = Callable[[Mapping[str, Any]], Any]


def nesting(subject: Subject) -> tuple[Nest, Nest]:
    """Positional and keyword arguments of the model's forward from named values.

    Which value goes where is found once, so that a call only looks values up.
    """
    model = subject.target.model
    if isinstance(model, ExportedProgram):
        args, kwargs = pytree.tree_unflatten(list(subject.inputs), model.call_spec.in_spec)
        return _nest(tuple(args)), _nest(dict(kwargs))
    names: Any = {name: name for name in subject.inputs}
    return _nest(()), _nest(forward_arguments(model, names))


def host_call(subject: Subject, function: Callable[..., Any]) -> Call:
    """`function` of device tensors, arguments as in the model's forward, from host to host."""
    args, kwargs = nesting(subject)
    move = to_tensors(subject)

    def call(request: Mapping[str, Array]) -> Arrays:
        tensors = move(request)
        with torch.inference_mode():
            return to_arrays(function(*args(tensors), **kwargs(tensors)))

    return call


def to_tensors(subject: Subject) -> Callable[[Mapping[str, Array]], dict[str, Tensor]]:
    """Tensors on the subject's device: views on the CPU, queued copies elsewhere."""
    make = _not_strided if subject.jagged else torch.from_numpy
    names = subject.inputs
    if subject.device == "cpu":
        return lambda request: {name: make(request[name]) for name in names}
    device = torch.device(subject.device)
    return lambda request: {n: make(request[n]).to(device, non_blocking=True) for n in names}


def _not_strided(array: Array) -> Tensor:
    """Numpy's empty arrays have strides of 0, for which torch.compile would compile anew."""
    tensor = torch.from_numpy(array)
    return tensor if len(array) else tensor.new_empty(array.shape)


def to_arrays(result: Any) -> Arrays:
    """A model's result as arrays on the host, which waits for it on a device."""
    return {name: _host(value) for name, value in name_outputs(result).items()}


def _host(value: Tensor) -> Array:
    array: np.ndarray[Any, Any] = value.cpu().numpy()
    return array


def _nest(shape: Any) -> Nest:
    """A function that fills the names in `shape`, a nesting of dicts, lists and tuples."""
    if isinstance(shape, str):
        return itemgetter(shape)
    if isinstance(shape, Mapping):
        parts = {key: _nest(value) for key, value in shape.items()}
        return lambda values: {key: part(values) for key, part in parts.items()}
    kind = type(shape)
    if len(shape) > 1 and all(isinstance(item, str) for item in shape):
        pick = itemgetter(*shape)
        return pick if kind is tuple else lambda values: kind(pick(values))
    items = [_nest(item) for item in shape]
    return lambda values: kind(item(values) for item in items)
