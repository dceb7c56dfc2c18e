"""Run the steps of a graph: on tensors, or on sizes where these are all that a step reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import torch

from recreplay.capture.onnx_import.call import Call, Constant, Value
from recreplay.capture.onnx_import.dims import Dims, compute
from recreplay.capture.onnx_import.graph import Graph, Step
from recreplay.capture.onnx_import.natural import Natural
from recreplay.capture.onnx_import.operators import OPERATORS
from recreplay.runtime.errors import RecReplayError, UnsupportedModelError

LARGEST_TENSOR = 4 << 30  # bytes that one value may have while a model is read
MOST_TURNS = 1024  # of a loop, which is unrolled
CONTROL = ("If", "Loop")


def run_steps(steps: Sequence[Step], env: dict[str, Value], natural: Natural) -> None:
    """Run steps in order; `env` holds what they read and gets what they make.

    `natural` says which values are never negative.
    """
    for step in steps:
        env |= run_step(step, env, natural)


def run_step(step: Step, env: Mapping[str, Value], natural: Natural) -> dict[str, Value]:
    """The outputs of one step, by name. Raises `UnsupportedModelError` that names the node."""
    values = [env[name] if name else None for name in step.inputs]
    try:
        if step.op == "If":
            results: Any = _choose(step, values, env, natural)
        elif step.op == "Loop":
            results = _unroll(step, values, env, natural)
        else:
            results = _on_sizes(step, values)
            if results is None:
                results = OPERATORS[step.op](Call(step, values, natural))
    except RecReplayError:
        raise
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise UnsupportedModelError(f"{step} cannot be run: {lines[0].strip()}") from error
    if isinstance(results, (torch.Tensor, Dims, Constant)):
        results = [results]
    found = {k: v for k, v in zip(step.outputs, results, strict=False) if k}
    missing = [name for name in step.outputs if name and name not in found]
    if missing:
        raise UnsupportedModelError(f"{step}: its output {missing[0]!r} is not supported")
    if all(v is None or isinstance(v, Constant) for v in values):
        found = {k: _constant(v) for k, v in found.items()}
    for value in found.values():
        _check_size(step, value)
    return found


def _on_sizes(step: Step, values: Sequence[Value]) -> list[Dims] | None:
    if not any(isinstance(v, Dims) for v in values) and not all(
        v is None or isinstance(v, Constant) for v in values
    ):
        return None
    numbers: list[Dims | None] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            return None
        if isinstance(value, Constant):
            known = value.dims()
            if known is None:
                return None
            numbers.append(known)
        else:
            numbers.append(value)
    return compute(step, numbers)


def _constant(value: Any) -> Value:
    if isinstance(value, Dims):
        known: torch.dtype = value.dtype
        return Constant.holding(np.array(value.array.tolist()), known)
    return Constant.of(value) if isinstance(value, torch.Tensor) else value


def _check_size(step: Step, value: Value) -> None:
    if value is None or isinstance(value, Dims):
        return
    # The batch is the caller's business.
    count = prod(size for size in value.shape if type(size) is int)
    if count * value.dtype.itemsize > LARGEST_TENSOR:
        raise UnsupportedModelError(
            f"{step} makes a tensor of shape {tuple(value.shape)}, {value.dtype}; more than "
            f"{LARGEST_TENSOR >> 30} GiB for one value is taken for a mistake"
        )


def _choose(
    step: Step, values: Sequence[Value], env: Mapping[str, Value], natural: Natural
) -> list[Value]:
    known = Call(step, values, natural).dims(0)
    if known is None:
        raise UnsupportedModelError(
            f"{step} runs one of two branches by data; a captured graph always runs the same "
            "operators, so compute both and select by Where"
        )
    branch = step.attributes["then_branch" if bool(known.flat()[0]) else "else_branch"]
    return _run_graph(branch, [], env, natural)


def _unroll(
    step: Step, values: Sequence[Value], env: Mapping[str, Value], natural: Natural
) -> list[Value]:
    call, body = Call(step, values, natural), step.attributes["body"]
    trip = call.dims(0)
    turns = trip.flat()[0] if trip is not None else None if call.has(0) else MOST_TURNS + 1
    goes_on = _known(call.dims(1)) if call.has(1) else True
    carried = list(values[2:])
    scanned: list[list[torch.Tensor]] = [[] for _ in body.outputs[1 + len(carried) :]]
    turn = 0
    while type(turns) is int and goes_on and turn < min(turns, MOST_TURNS + 1):
        now = [
            Constant.holding(np.array(turn), torch.int64),
            Constant.holding(np.array(True), torch.bool),
            *carried,
        ]
        condition, *results = _run_graph(body, now, env, natural)
        goes_on = _known(Call(step, [condition], natural).dims(0))
        carried = results[: len(carried)]
        for pieces, value in zip(scanned, results[len(carried) :], strict=True):
            pieces.append(Call(step, [value], natural).tensor(0))
        turn += 1
        if goes_on is None:
            raise UnsupportedModelError(
                f"{step} ends early by data; a captured graph always runs all turns, so mask what "
                "comes after the end instead"
            )
    if type(turns) is not int or goes_on is None or turn > MOST_TURNS:
        raise UnsupportedModelError(
            f"{step} runs as often as the data or the batch says; supported are loops of a number "
            f"of turns up to {MOST_TURNS} that no data decides, so compute with masks or a fixed "
            "capacity instead"
        )
    if not turn and scanned:
        raise UnsupportedModelError(f"{step} has no turns, so the shape of its output is unknown")
    return [*carried, *(torch.stack(pieces) for pieces in scanned)]


def _known(condition: Dims | None) -> bool | None:
    """None where data decides."""
    value = None if condition is None else condition.flat()[0]
    return None if value is None or isinstance(value, torch.SymBool) else bool(value)


def _run_graph(
    graph: Graph, inputs: Sequence[Value], env: Mapping[str, Value], natural: Natural
) -> list[Value]:
    inside = dict(env)
    inside |= {spec.name: value for spec, value in zip(graph.inputs, inputs, strict=True)}
    run_steps(graph.steps, inside, natural)
    return [inside[name] for name in graph.outputs]
