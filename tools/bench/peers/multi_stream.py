"""Eager operators on several CUDA streams, a feature's branch on one: StreamRec without graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from recreplay.capture.assign import assign
from recreplay.capture.features import to_dag
from recreplay.capture.program import Program
from recreplay.capture.specialise import specialise
from recreplay.runtime.plan import Plan
from recreplay.tools.bench.peers.base import Array, Arrays, Call, Subject
from recreplay.tools.bench.peers.cuda_graph import NOT_CUDA
from recreplay.tools.bench.peers.torch_call import to_tensors

_STREAMS = 8


class MultiStream:
    name = "multi_stream"
    about = (
        f"operators launched one by one on {_STREAMS} streams, each feature's branch whole on one "
        "(strategy feature), events between them; no graph"
    )
    records_graphs = False

    def absent(self, device: str) -> str | None:
        return None if device.startswith("cuda") else NOT_CUDA

    def load(self, subject: Subject) -> MultiStreamModel:
        return MultiStreamModel(subject)


class MultiStreamModel:
    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        exported = subject.exported
        state = {**exported.state_dict, **exported.constants}
        self._state = {k: v.to(subject.device) for k, v in state.items()}

    def prepare(self, example: Mapping[str, Array]) -> Call:
        rows = len(next(iter(example.values())))
        program = specialise(self._subject.ingested, rows, folds=False)
        dag, nodes = to_dag(program)
        order = issue_order(program, assign(dag, "feature", _STREAMS), nodes)
        device = torch.device(self._subject.device)
        fixed: dict[fx.Node, Any] = {}
        for node in program.graph.find_nodes(op="placeholder"):
            kind, _, name = str(node.target).partition(":")
            if kind == "weight":
                fixed[node] = self._state[name]
            elif kind == "const":
                fixed[node] = program.constants[name].to(device)
        move = to_tensors(self._subject)
        streams = [
            torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            for _ in range(_STREAMS)
        ]

        def call(request: Mapping[str, Array]) -> Arrays:
            with torch.inference_mode():
                values = dict(fixed)
                tensors = move(request)
                for node in program.graph.find_nodes(op="placeholder"):
                    kind, _, name = str(node.target).partition(":")
                    if kind == "input":
                        values[node] = tensors[name]
                launch(order, values, streams)
                # `values` keeps all results alive until this has waited for the device.
                return {n: values[out].cpu().numpy() for n, out in program.outputs.items()}

        return call

    def close(self) -> None:
        pass


# Of each operator: its stream, the operators it waits for, and whether any waits for it.
Order = list[tuple[fx.Node, int, tuple[fx.Node, ...], bool]]


def issue_order(program: Program, plan: Plan, nodes: list[fx.Node]) -> Order:
    """The operators in the plan's order; views, which launch nothing, right before their reader."""
    by_name = {node.name: node for node in nodes}
    steps = [by_name[step.name] for step in plan.steps]
    waited = {w for step in plan.steps for w in step.waits}
    done: set[fx.Node] = set()
    order: Order = []

    def add(node: fx.Node, stream: int, waits: tuple[fx.Node, ...], awaited: bool) -> None:
        for view in node.all_input_nodes:
            if view.op == "call_function" and view not in done and view.name not in by_name:
                add(view, stream, (), False)
        order.append((node, stream, waits, awaited))
        done.add(node)

    for i, step in enumerate(plan.steps):
        add(steps[i], step.stream, tuple(steps[w] for w in step.waits), i in waited)
    for node in program.outputs.values():
        if node not in done:
            add(node, 0, (), False)
    return order


def launch(order: Order, values: dict[fx.Node, Any], streams: list[torch.cuda.Stream]) -> None:
    """Fork from the current stream, run every operator on its own, join."""
    main = torch.cuda.current_stream(streams[0].device)
    for stream in streams:
        stream.wait_stream(main)
    events: dict[fx.Node, torch.cuda.Event] = {}
    for node, number, waits, awaited in order:
        stream = streams[number]
        for other in waits:
            stream.wait_event(events[other])
        with torch.cuda.stream(stream):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            assert callable(node.target)
            values[node] = node.target(*args, **kwargs)
        if awaited:
            events[node] = stream.record_event()
    for stream in streams:
        main.wait_stream(stream)
