"""`recreplay::gru`, `recreplay::lstm`: the steps of a recurrent layer, whose products with the
inputs are done.

torch runs a layer of L steps as some ten operators a step. Packages call `gru.h` and `lstm.h` of
`recreplay.capture.compilers`, in which a few rows go through all steps with the weight in a near
cache; what is below runs where no package is: in tracing and in tests.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from recreplay.runtime.own_operator import define_operator


@cache
def gru_operator() -> Callable[..., Any]:
    """The operator, defined when it is first asked for.

    `gru(gates, first, turned, bias, reverse) -> float32 [B, L, H]`, the state after each step:
    `gates` float32 `[B, L, 3H]`, what the inputs give to the reset, the update and the new gate,
    with their bias; `first` `[B, H]`, the state before; `turned` `[H, 3H]`, the recurrent weight
    transposed, and `bias` `[3H]` or None. With `reverse`, from the last step to the first.
    """
    schema = "Tensor gates, Tensor first, Tensor turned, Tensor? bias, bool reverse"
    return define_operator("gru", schema, _gru, _shape)


@cache
def lstm_operator() -> Callable[..., Any]:
    """The operator, defined when it is first asked for.

    `lstm(gates, first, cells, turned, bias, reverse) -> float32 [B, L, H]`: as `gru`, of the gates
    input, forget, new and output, 4H wide; `cells` `[B, H]` are the cells before.
    """
    schema = "Tensor gates, Tensor first, Tensor cells, Tensor turned, Tensor? bias, bool reverse"
    return define_operator("lstm", schema, _lstm, _shape)


def _shape(gates: Tensor, first: Tensor, *_: Any) -> Tensor:
    return gates.new_empty([*gates.shape[:2], first.shape[1]])


def _gru(
    gates: Tensor, first: Tensor, turned: Tensor, bias: Tensor | None, reverse: bool
) -> Tensor:
    state, states = first, []
    for given in gates.unbind(1)[:: -1 if reverse else 1]:
        own = _product(state, turned, bias)
        parts = zip(given.chunk(3, 1), own.chunk(3, 1), strict=True)
        (reset, from_reset), (update, from_update), (new, from_new) = parts
        kept = torch.sigmoid(update + from_update)
        made = torch.tanh(new + torch.sigmoid(reset + from_reset) * from_new)
        state = made + kept * (state - made)
        states.append(state)
    return torch.stack(states[:: -1 if reverse else 1], 1)


def _lstm(
    gates: Tensor, first: Tensor, cells: Tensor, turned: Tensor, bias: Tensor | None, reverse: bool
) -> Tensor:
    state, held, states = first, cells, []
    for given in gates.unbind(1)[:: -1 if reverse else 1]:
        new_in, kept, made, out = (given + _product(state, turned, bias)).chunk(4, 1)
        held = torch.sigmoid(kept) * held + torch.sigmoid(new_in) * torch.tanh(made)
        state = torch.sigmoid(out) * torch.tanh(held)
        states.append(state)
    return torch.stack(states[:: -1 if reverse else 1], 1)


def _product(state: Tensor, turned: Tensor, bias: Tensor | None) -> Tensor:
    return state @ turned if bias is None else torch.addmm(bias, state, turned)
