"""Models that take a `KeyedJaggedTensor` of torchrec, as models of plain tensors.

It holds the ids of all features end to end, feature after feature, which no request can be cut out
of or padded in. Here each key is a jagged input of its own: of a parameter `sparse` with a key
`ads`, the ids `sparse_ads`, their number per row `sparse_ads_lengths`, and `sparse_ads_weights`
where ids are weighted. Inside, the model is given what torchrec would make of those.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch
from torch.utils import _pytree as pytree

from recreplay.capture.arguments import Example, NamedInputs, forward_arguments, named_leaves
from recreplay.capture.declared import Jagged, jagged_of
from recreplay.capture.division import offsets_of
from recreplay.runtime.errors import CaptureError, UnsupportedModelError


@dataclass(frozen=True)
class _Parameter:
    """What a parameter of `forward` is made of: plain tensors nested by `spec`, or, with `keys`,
    values and lengths by key, and weights."""

    name: str
    inputs: tuple[str, ...]
    spec: pytree.TreeSpec | None
    keys: tuple[str, ...] = ()
    kind: Any = None  # of what has these keys

    def make(self, given: Mapping[str, torch.Tensor]) -> Any:
        if self.spec is not None:
            return pytree.tree_unflatten([given[name] for name in self.inputs], self.spec)
        jagged, parts = _torchrec().JaggedTensor, {}
        for key, (values, lengths, *weights) in zip(self.keys, self.by_key(), strict=True):
            own = given[weights[0]] if weights else None
            parts[key] = jagged(given[values], own, given[lengths], offsets_of(given[lengths]))
        return _of_parts(self.kind, parts)

    def by_key(self) -> list[tuple[str, ...]]:
        """The inputs of each key: values, lengths, and weights if there are some."""
        each = len(self.inputs) // max(len(self.keys), 1)
        return [self.inputs[i * each : (i + 1) * each] for i in range(len(self.keys))]


@dataclass(frozen=True)
class _Keyed:
    """A model of keyed tensors, and what of plain ones it is given."""

    model: Any
    parameters: tuple[_Parameter, ...]
    names: tuple[str, ...]
    jagged: tuple[Jagged, ...]


class PlainInputs(NamedInputs):
    """Has the attributes of a model for its own, so that weights keep their names, and calls it: it
    runs as what it is, with its hooks. What is said here comes before what is called so there."""

    of_keyed: ClassVar[_Keyed]

    @property
    def input_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return type(self).of_keyed.names

    @property
    def jagged_inputs(self) -> tuple[Jagged, ...]:
        return type(self).of_keyed.jagged

    @property
    def example_inputs(self) -> Callable[..., dict[str, torch.Tensor]] | None:
        model = type(self).of_keyed.model
        own = getattr(model, "example_inputs", None)
        return own and (lambda *given: _flat(forward_arguments(model, own(*given)))[1])

    @property
    def forward(self) -> Callable[[list[torch.Tensor]], Any]:  # type: ignore[override]
        return partial(PlainInputs.__call__, self)

    def __call__(self, inputs: list[torch.Tensor]) -> Any:
        keyed = type(self).of_keyed
        given = dict(zip(keyed.names, inputs, strict=True))
        result = keyed.model(**{p.name: p.make(given) for p in keyed.parameters})
        return result.to_dict() if type(result).__name__ == "KeyedTensor" else result

    def __deepcopy__(self, memo: dict[int, Any]) -> PlainInputs:
        keyed = type(self).of_keyed
        return _plain(replace(keyed, model=deepcopy(keyed.model, memo)))

    def modules(self, *given: Any, **named: Any) -> Iterator[torch.nn.Module]:
        yield from type(self).of_keyed.model.modules(*given, **named)


def _plain(keyed: _Keyed) -> PlainInputs:
    kind = type(keyed.model)
    told = {"__module__": kind.__module__, "of_keyed": keyed}
    plain: Any = type(kind.__name__, (PlainInputs,), told)
    made: PlainInputs = plain.__new__(plain)
    made.__dict__ = vars(keyed.model)
    return made


def has_keyed(example: Example) -> bool:
    """Whether there is a `KeyedJaggedTensor` among the arguments of an example."""
    given = example.values() if isinstance(example, Mapping) else example
    kind = _torchrec() and _torchrec().KeyedJaggedTensor
    return kind is not None and any(isinstance(value, kind) for value in given)


def plain_inputs(model: Any, example: Example | None) -> tuple[Any, Any]:
    """`model` and its example inputs, in plain tensors if there are keyed ones among these."""
    if example is None or not isinstance(model, torch.nn.Module) or not has_keyed(example):
        return model, example
    parameters, flat = _flat(forward_arguments(model, example))
    by_key = [inputs for parameter in parameters for inputs in parameter.by_key()]
    jagged = [
        Jagged(values, lengths=lengths)
        for ids, lengths, *weights in by_key
        for values in (ids, *weights)
    ]
    keyed = _Keyed(model, parameters, tuple(flat), (*jagged, *jagged_of(model, None)))
    return _plain(keyed), flat


def _flat(
    arguments: Mapping[str, Any],
) -> tuple[tuple[_Parameter, ...], dict[str, torch.Tensor]]:
    parameters, flat = [], dict[str, torch.Tensor]()
    for name, value in arguments.items():
        is_keyed = isinstance(value, _torchrec().KeyedJaggedTensor)
        tensors = _by_key(name, value) if is_keyed else [*named_leaves({name: value}).items()]
        names = tuple(each for each, _ in tensors)
        for each, tensor in tensors:
            if each in flat:
                raise CaptureError(
                    f"two example inputs are named {each!r}: those of a KeyedJaggedTensor are "
                    "named PARAMETER_KEY, and with _lengths and _weights behind; rename a key or a "
                    "parameter"
                )
            flat[each] = tensor
        if is_keyed:
            kind = _known_by_key(_torchrec().KeyedJaggedTensor)
            parameters.append(_Parameter(name, names, None, tuple(value.keys()), kind))
        else:
            parameters.append(_Parameter(name, names, pytree.tree_structure(value)))
    return tuple(parameters), flat


def _by_key(name: str, keyed: Any) -> list[tuple[str, torch.Tensor]]:
    """Values, lengths and weights of each key, in this order."""
    if keyed.variable_stride_per_key() or keyed.inverse_indices_or_none() is not None:
        raise UnsupportedModelError(
            f"KeyedJaggedTensor {name!r} has another number of rows for each key (a variable "
            "stride, or inverse indices); give each key as many rows as the request has"
        )
    keys = keyed.keys()
    if not keys or len(set(keys)) < len(keys):
        raise CaptureError(
            f"KeyedJaggedTensor {name!r} of the example has keys {list(keys)}; expected one or "
            "more, each once"
        )
    tensors = []
    for key, jagged in keyed.to_dict().items():
        tensors.append((f"{name}_{key}", jagged.values()))
        tensors.append((f"{name}_{key}_lengths", jagged.lengths()))
        if jagged.weights_or_none() is not None:
            tensors.append((f"{name}_{key}_weights", jagged.weights()))
    return tensors


def _of_parts(kind: Any, parts: dict[str, Any]) -> Any:
    """What of each key is known beforehand is said, as torchrec reads it off the data else."""
    of_keys = list(parts.values())
    weighted = of_keys[0].weights_or_none() is not None
    return kind(
        keys=list(parts),
        values=torch.cat([part.values() for part in of_keys]),
        weights=torch.cat([part.weights() for part in of_keys]) if weighted else None,
        lengths=torch.cat([part.lengths() for part in of_keys]),
        stride=of_keys[0].lengths().shape[0],
        length_per_key=[part.values().shape[0] for part in of_keys],
        jt_dict=parts,
    )


@cache
def _known_by_key(kind: Any) -> Any:
    class KnownByKey(kind):  # type: ignore[misc]
        """Gives the tensors of a key as they are; torchrec would cut them out of all values."""

        def to_dict(self, compute_offsets: bool = True) -> Any:
            return self._jt_dict

        def __getitem__(self, key: str) -> Any:
            return self._jt_dict[key]

        def split(self, segments: list[int]) -> list[Any]:
            ends = list(accumulate(segments, initial=0))
            return [
                self._of(range(a, b)) if a < b else kind.empty_like(self) for a, b in pairwise(ends)
            ]

        def permute(self, indices: list[int], indices_tensor: Any = None) -> Any:
            twice = len(set(indices)) < len(indices)
            return super().permute(indices, indices_tensor) if twice else self._of(indices)

        def to(self, device: Any, non_blocking: bool = False, dtype: Any = None) -> Any:
            moved = {k: part.to(device, non_blocking) for k, part in self._jt_dict.items()}
            return _of_parts(type(self), moved)

        def _of(self, indices: Iterable[int]) -> Any:
            names = [self._keys[i] for i in indices]
            return _of_parts(type(self), {name: self._jt_dict[name] for name in names})

    return KnownByKey


def _torchrec() -> Any:
    """Its module of jagged tensors, if a caller has it: nobody else has such tensors."""
    return sys.modules.get("torchrec.sparse.jagged_tensor")
