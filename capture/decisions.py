"""Which values of an answer the model decides by more than rounding.

Of two items that score the same but for a rounding, a top-k gives one or the other first; a bound
is passed or not. Another order of the same sums decides otherwise, and what follows from it is
another value and no small difference. Such places are found as Monte Carlo arithmetic finds them
(Parker, UCLA CSD-970002): the model runs several times, each result of each operator a little off.

What no operator rounds is not off: an id that lies among floats, a count of places, a flag. Else
all that is looked up by it would seem to hang on a rounding, and nothing would be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from recreplay.capture.eager_model import run_eager
from recreplay.capture.ingest import Ingested
from recreplay.capture.views import aliases
from recreplay.runtime.closeness import is_close
from recreplay.runtime.errors import CaptureError

_RUNS = 16  # of which each turns a decision that hangs on rounding with a probability of a half
ROUNDING = 2.0**-21  # of float32: a few units in the last place
_ANOTHER = 10  # times what a replay may be off is no rounding that has grown on its way

Array = np.ndarray[Any, Any]
aten = torch.ops.aten
# What these give was there before.
_MOVES = frozenset(
    (
        *(aten.cat, aten.clone, aten.constant_pad_nd, aten.embedding, aten.flip, aten.gather),
        *(aten.index, aten.index_select, aten.masked_fill, aten.repeat, aten.repeat_interleave),
        *(aten.roll, aten.stack, aten.take, aten.tril, aten.triu, aten.where, aten._to_copy),
    )
)
# Of equal values, too, these give the one that they please.
_ORDERS = frozenset(
    (
        *(aten.argmax.default, aten.argmin.default, aten.max.dim, aten.min.dim, aten.median.dim),
        *(aten.kthvalue.default, aten.sort.default, aten.sort.stable, aten.topk.default),
    )
)


def decided(
    model: Ingested,
    inputs: Mapping[str, torch.Tensor],
    answer: Mapping[str, Array],
    rows: int,
    share: float,
    rtol: float,
    atol: float,
    scales: Mapping[str, Array | float],
) -> dict[str, Array]:
    """For each output of `answer`, eager's own of a request of so many rows, a mask of its shape:
    true where no run gives another value. Results of operators are off by up to `share` of
    themselves; a replay may be by `rtol` of `scales`, and `atol`."""
    found = {name: np.ones(want.shape, bool) for name, want in answer.items()}
    on_cpu = all(tensor.is_cpu for tensor in model.example.values())
    # An id made of a float may come to lie beyond its table, which would end a GPU's context.
    for seed in range(_RUNS if on_cpu or not _makes_ids(model.exported.graph) else 0):
        try:
            with _Disturbed(share, seed):
                again = run_eager(model, inputs, rows)
        except CaptureError:  # there, too; this run says nothing
            continue
        for name, want in answer.items():
            found[name] &= is_close(
                again[name], want, _ANOTHER * rtol, _ANOTHER * atol, scales[name]
            )
    return found


def _makes_ids(graph: fx.Graph) -> bool:
    """Whether whole numbers are made of floats."""
    casts = (aten._to_copy.default, aten.to.dtype, aten.to.device)
    return any(
        node.target in casts
        and node.args[0].meta["val"].is_floating_point()
        and not node.meta["val"].is_floating_point()
        for node in graph.nodes
    )


class _Disturbed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Results of operators that round are off by up to `share` of themselves, or a unit of their
    type; whole numbers where their order is asked for."""

    def __init__(self, share: float, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._share, self._seed = share, seed
        self._draws: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if operator in _ORDERS:
            args = pytree.tree_map_only(torch.Tensor, self._off, args)
        result = operator(*args, **(kwargs or {}))
        if operator._schema.is_mutable or aliases(operator) or operator.overloadpacket in _MOVES:
            return result
        return pytree.tree_map_only(torch.Tensor, self._rounded_otherwise, result)

    def _rounded_otherwise(self, value: torch.Tensor) -> torch.Tensor:
        if not value.is_floating_point():
            return value
        return torch.where(value == value.round(), value, self._off(value))

    def _off(self, value: torch.Tensor) -> torch.Tensor:
        if not value.is_floating_point():
            return value
        if value.device not in self._draws:
            self._draws[value.device] = torch.Generator(value.device).manual_seed(self._seed)
        share = max(self._share, torch.finfo(value.dtype).eps)
        draw = torch.rand(value.shape, generator=self._draws[value.device], device=value.device)
        return value * (1 + share * (2 * draw - 1)).to(value.dtype)
