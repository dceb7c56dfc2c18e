"""An ONNX graph as a torch module, which capture takes like any other."""

from __future__ import annotations

import keyword
import logging
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from recreplay.capture.arguments import NamedInputs
from recreplay.capture.onnx_import.bags import find_bags, jagged_pools
from recreplay.capture.onnx_import.call import Call, Constant, Value
from recreplay.capture.onnx_import.execution import CONTROL, run_steps
from recreplay.capture.onnx_import.folding import fold
from recreplay.capture.onnx_import.graph import Graph, GraphInput, Step, names_of
from recreplay.capture.onnx_import.hoisting import hoist_constants
from recreplay.capture.onnx_import.layers import find_linears, flatten_tables
from recreplay.capture.onnx_import.natural import natural_values
from recreplay.capture.onnx_import.operators import OPERATORS, SUPPORTED
from recreplay.capture.quiet_libraries import only_from
from recreplay.runtime.errors import CaptureError, UnsupportedModelError

_TRIAL_ROWS = 4


class OnnxModel(NamedInputs):
    """The function of an ONNX graph: a list of tensors in, a dict of tensors by output name out.

    Initialisers are buffers under their own names, where a dot begins a submodule as in torch.
    Sizes are computed as numbers, so that a symbolic batch stays symbolic under torch.export.
    `jagged_inputs` (values to offsets) are those that the graph itself shows to be jagged: what
    bags of varying length are made of, unless the model computes the offsets.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__(tuple(spec.name for spec in graph.inputs))
        graph = find_linears(flatten_tables(fold(find_bags(fold(hoist_constants(graph).pruned())))))
        _check_supported(graph)
        self.specs = graph.inputs
        self._pools = jagged_pools(graph)
        self.jagged_inputs = {v: p.offsets for p in self._pools if p.offsets for v in p.values}
        self._outputs = graph.outputs
        self._steps = graph.steps
        self._natural = natural_values(graph)
        self._constants: dict[str, Constant] = {}
        for name, tensor in graph.constants.items():
            owner, leaf = self._place(name)
            owner.register_buffer(leaf, tensor)
            # Under export the attribute is another tensor than the one registered.
            self._constants[name] = Constant.of(tensor, partial(getattr, owner, leaf))
        self.eval()

    def forward(self, inputs: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        env: dict[str, Value] = dict(self._constants)
        env |= zip(self.input_names, inputs, strict=True)
        run_steps(self._steps, env, self._natural)
        out = Step("outputs", "Identity", self._outputs, (), {}, 0)
        call = Call(out, [env[name] for name in self._outputs], self._natural)
        return {name: call.tensor(at) for at, name in enumerate(self._outputs)}

    def example_inputs(self, batch: int) -> dict[str, torch.Tensor]:
        """Inputs `[batch, ...]`: zeros where they may be ids, true where they are bool, which a
        row mask is, else uniform in [0, 1).

        Zero is a valid id of any table, and so is what is left of the others when they are cast.
        Raises `CaptureError` where a file does not say what real inputs look like.
        """
        if self._pools:
            named = ", ".join(f"{v!r} (by {o!r})" for v, o in self.jagged_inputs.items())
            raise CaptureError(
                f"the model pools jagged inputs, {named or 'by offsets that it computes'}, and the "
                "file does not say how many values a row has; give example inputs with real "
                "lengths (example_inputs=, --inputs)"
            )
        generator = torch.Generator().manual_seed(0)
        example = {}
        for spec in self.specs:
            shape = _rows_of(spec, batch)
            if spec.dtype.is_floating_point:
                example[spec.name] = torch.rand(shape, generator=generator).to(spec.dtype)
            else:
                value = spec.dtype == torch.bool
                example[spec.name] = torch.full(shape, value, dtype=spec.dtype)
        return example

    def try_out(self) -> None:
        """Run on fake inputs, so that a model that cannot run at all is refused with its node."""
        # Where an operator fails, torch logs its whole way there, which the refusal is about.
        told = only_from(logging.CRITICAL, "torch._subclasses.fake_tensor")
        with told, FakeTensorMode(allow_non_fake_inputs=True):
            self([torch.zeros(self._trial_shape(spec), dtype=spec.dtype) for spec in self.specs])

    def _trial_shape(self, spec: GraphInput) -> list[int]:
        one_more = any(p.with_end and p.offsets == spec.name for p in self._pools)
        rows = _TRIAL_ROWS + one_more
        return [d if isinstance(d, int) else rows for d in spec.shape or ()]

    def _place(self, name: str) -> tuple[torch.nn.Module, str]:
        """The submodule that holds a constant, and the attribute that it is there."""
        owner: torch.nn.Module = self
        *path, leaf = [part for part in name.split(".") if part] or ["constant"]
        for part in path:
            inside = owner._modules.get(part)
            if inside is None:
                if hasattr(owner, part) or keyword.iskeyword(part):
                    break  # a name that is taken by something else
                inside = torch.nn.Module()
                owner.add_module(part, inside)
            owner = inside
        # torch writes modules as code, where a keyword is no attribute.
        while hasattr(owner, leaf) or keyword.iskeyword(leaf):
            leaf += "_"
        return owner, leaf


def _rows_of(spec: GraphInput, batch: int) -> list[int]:
    if not spec.shape:
        raise UnsupportedModelError(
            f"input {spec.name!r} is a scalar; every input needs a row for each row of the batch"
        )
    head, *row = spec.shape
    if isinstance(head, int):
        raise UnsupportedModelError(
            f"input {spec.name!r} has a fixed batch of {head}; export the model with a symbolic "
            "first dimension (dynamic_axes or dynamic_shapes) for every input"
        )
    free = [d or "an unnamed size" for d in row if not isinstance(d, int)]
    if free:
        raise CaptureError(
            f"input {spec.name!r} has the symbolic size {free[0]} beside its batch; a captured "
            "graph fixes it, so give example inputs of the size that is served (--inputs)"
        )
    return [batch, *(d for d in row if isinstance(d, int))]


def _check_supported(graph: Graph) -> None:
    unknown: dict[str, list[Step]] = {}
    for step in _all_steps(graph.steps):
        if step.op not in OPERATORS and step.op not in CONTROL:
            unknown.setdefault(step.op, []).append(step)
    if unknown:
        listed = "; ".join(f"{op} (node {names_of(steps)})" for op, steps in unknown.items())
        raise UnsupportedModelError(
            f"the model has operators that are not supported: {listed}. Supported are "
            f"{', '.join(SUPPORTED)}, and If and Loop that do not depend on data"
        )


def _all_steps(steps: Sequence[Step]) -> Iterator[Step]:
    for step in steps:
        yield step
        for attribute in step.attributes.values():
            if isinstance(attribute, Graph):
                yield from _all_steps(attribute.steps)
