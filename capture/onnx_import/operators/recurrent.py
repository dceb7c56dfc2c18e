"""Recurrent layers: torch's where these compute the same, else unrolled, as the number of steps is
fixed when a graph is captured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from recreplay.capture.onnx_import.call import Call, Operator

Activation = Callable[[torch.Tensor], torch.Tensor]
State = tuple[torch.Tensor, ...]
# One step of one direction: the input's share of the gates, then the state; gives the new state.
Cell = Callable[[torch.Tensor, State], State]

_ACTIVATIONS: dict[str, Activation] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "softsign": torch.nn.functional.softsign,
    "softplus": torch.nn.functional.softplus,
}


@dataclass(frozen=True)
class _Direction:
    """Weights of one direction: `W [gates*H, I]`, `R [gates*H, H]`, biases `[gates*H]` each."""

    weight: torch.Tensor
    recurrent: torch.Tensor
    input_bias: torch.Tensor
    state_bias: torch.Tensor
    peephole: torch.Tensor | None
    activations: tuple[Activation, ...]
    hidden: int


def _rnn(w: _Direction, call: Call) -> Cell:
    (act,) = w.activations

    def step(gates: torch.Tensor, state: State) -> State:
        recurrent = torch.nn.functional.linear(state[0], w.recurrent, w.state_bias)
        return (act(_clipped(call, gates + recurrent)),)

    return step


def _gru(w: _Direction, call: Call) -> Cell:
    act, act_hidden = w.activations
    size, after = w.hidden, call.attribute("linear_before_reset", 0)

    def step(gates: torch.Tensor, state: State) -> State:
        (h,) = state
        if after:
            from_state = torch.nn.functional.linear(h, w.recurrent, w.state_bias)
            both = act(_clipped(call, gates[:, : 2 * size] + from_state[:, : 2 * size]))
            update, reset = both[:, :size], both[:, size:]
            candidate = gates[:, 2 * size :] + reset * from_state[:, 2 * size :]
        else:
            r, b = w.recurrent[: 2 * size], w.state_bias[: 2 * size]
            from_state = torch.nn.functional.linear(h, r, b)
            both = act(_clipped(call, gates[:, : 2 * size] + from_state))
            update, reset = both[:, :size], both[:, size:]
            rest = torch.nn.functional.linear(
                reset * h, w.recurrent[2 * size :], w.state_bias[2 * size :]
            )
            candidate = gates[:, 2 * size :] + rest
        new = act_hidden(_clipped(call, candidate))
        return ((1 - update) * new + update * h,)

    return step


def _lstm(w: _Direction, call: Call) -> Cell:
    act, act_cell, act_hidden = w.activations
    size = w.hidden
    if call.attribute("input_forget", 0):
        raise call.refuse("input_forget=1 is not supported")

    def step(gates: torch.Tensor, state: State) -> State:
        h, c = state
        total = gates + torch.nn.functional.linear(h, w.recurrent, w.state_bias)
        i, o, f, g = (total[:, n * size : (n + 1) * size] for n in range(4))
        if w.peephole is not None:
            i = i + w.peephole[:size] * c
            f = f + w.peephole[2 * size :] * c
        new_c = act(_clipped(call, f)) * c + act(_clipped(call, i)) * act_cell(_clipped(call, g))
        if w.peephole is not None:
            o = o + w.peephole[size : 2 * size] * new_c
        return act(_clipped(call, o)) * act_hidden(new_c), new_c

    return step


def _clipped(call: Call, x: torch.Tensor) -> torch.Tensor:
    limit = call.attribute("clip")
    return x if limit is None else x.clamp(-limit, limit)


@dataclass(frozen=True)
class _Kind:
    gates: int
    states: int  # hidden state alone, or hidden and cell
    defaults: tuple[str, ...]
    cell: Callable[[_Direction, Call], Cell]
    # The function of torch, and where the gates that it has in its order stand in ONNX's.
    layer: Callable[..., Any] | None = None
    order: tuple[int, ...] = ()


_KINDS = {
    "RNN": _Kind(1, 1, ("tanh",), _rnn),
    "GRU": _Kind(3, 1, ("sigmoid", "tanh"), _gru, torch.gru, (1, 0, 2)),
    "LSTM": _Kind(4, 2, ("sigmoid", "tanh", "tanh"), _lstm, torch.lstm, (0, 2, 3, 1)),
}


def _layer(kind: _Kind) -> Operator:
    def run(call: Call) -> tuple[torch.Tensor, ...]:
        x = call.tensor(0)
        batch_first = call.attribute("layout", 0)
        x = x.transpose(0, 1) if batch_first else x
        steps, rows = x.shape[0], x.shape[1]
        if not isinstance(steps, int):
            raise call.refuse("the number of its steps is not fixed")
        _check_lengths(call, steps)
        directions = call.tensor(1).shape[0]
        backwards = [call.attribute("direction", "forward") == "reverse", True][:directions]
        if directions == 2:
            backwards = [False, True]
        ways = [_weights(call, kind, at) for at in range(directions)]
        firsts = [_first_state(call, kind, at, x, rows, w.hidden) for at, w in enumerate(ways)]
        if _is_torchs(call, kind, ways):
            return _by_torch(kind, x, ways, firsts, backwards, batch_first)
        sequences, finals = [], []
        for weights, state, backward in zip(ways, firsts, backwards, strict=True):
            cell = kind.cell(weights, call)
            gates = torch.nn.functional.linear(x, weights.weight, weights.input_bias)
            outputs = []
            for t in reversed(range(steps)) if backward else range(steps):
                state = cell(gates[t], state)
                outputs.append(state[0])
            sequences.append(torch.stack(outputs[::-1] if backward else outputs))
            finals.append(state)
        every = torch.stack(sequences, dim=2 if batch_first else 1)
        if batch_first:  # [B, T, directions, H]
            every = every.transpose(0, 1)
        last = [
            torch.stack([state[n] for state in finals], dim=1 if batch_first else 0)
            for n in range(kind.states)
        ]
        return (every, *last)

    return run


def _is_torchs(call: Call, kind: _Kind, ways: list[_Direction]) -> bool:
    """Whether torch has a layer that computes what this one does."""
    usual = tuple(_ACTIVATIONS[name] for name in kind.defaults)
    return (
        kind.layer is not None
        and (kind.states == 2 or bool(call.attribute("linear_before_reset", 0)))
        and not call.attribute("input_forget", 0)
        and call.attribute("clip") is None
        and all(w.activations == usual and w.peephole is None for w in ways)
    )


def _by_torch(
    kind: _Kind,
    x: torch.Tensor,
    ways: list[_Direction],
    firsts: list[State],
    backwards: list[bool],
    batch_first: bool,
) -> tuple[torch.Tensor, ...]:
    """The results of ONNX by a layer of torch; `x` `[steps, rows, values]`."""
    weights = [
        torch.cat([part.chunk(kind.gates)[gate] for gate in kind.order])
        for w in ways
        for part in (w.weight, w.recurrent, w.input_bias, w.state_bias)
    ]
    backward = backwards == [True]
    states = [torch.stack(state) for state in zip(*firsts, strict=True)]
    first = states if kind.states == 2 else states[0]
    assert kind.layer is not None
    options = (True, 1, 0.0, False, len(ways) == 2, False)
    every, *last = kind.layer(x.flip(0) if backward else x, first, weights, *options)
    every = (every.flip(0) if backward else every).unflatten(-1, (len(ways), -1))
    # [steps, rows, directions, H]
    every = every.transpose(0, 1) if batch_first else every.transpose(1, 2)
    return (every, *(state.transpose(0, 1) if batch_first else state for state in last))


def _check_lengths(call: Call, steps: int) -> None:
    if not call.has(4):
        return
    known = call.constant(4)
    if known is None or not bool((known == steps).all()):
        raise call.refuse(
            "sequence_lens differ from row to row; a captured graph runs all steps for all rows, "
            "so mask what comes after the end instead"
        )


def _weights(call: Call, kind: _Kind, at: int) -> _Direction:
    weight, recurrent = call.tensor(1)[at], call.tensor(2)[at]
    size = recurrent.shape[-1]
    both = kind.gates * size
    bias = call.maybe(3)
    zeros = torch.zeros(both, dtype=weight.dtype)
    names = [str(n).lower() for n in call.attribute("activations", [])]
    count = len(kind.defaults)
    names = names[at * count : (at + 1) * count] or list(kind.defaults)
    unknown = [n for n in names if n not in _ACTIVATIONS]
    if unknown:
        raise call.refuse(
            f"unsupported activation {unknown[0]!r}; supported are {', '.join(_ACTIVATIONS)}"
        )
    peephole = call.maybe(7) if kind.states == 2 else None
    return _Direction(
        weight,
        recurrent,
        zeros if bias is None else bias[at, :both],
        zeros if bias is None else bias[at, both:],
        None if peephole is None else peephole[at],
        tuple(_ACTIVATIONS[n] for n in names),
        int(size),
    )


def _first_state(call: Call, kind: _Kind, at: int, x: torch.Tensor, rows: int, size: int) -> State:
    states = []
    for n in range(kind.states):
        given = call.maybe(5 + n)
        if given is None:
            states.append(torch.zeros(rows, size, dtype=x.dtype))
        else:
            states.append(given[:, at] if call.attribute("layout", 0) else given[at])
    return tuple(states)


RECURRENT: dict[str, Operator] = {name: _layer(kind) for name, kind in _KINDS.items()}
