"""One static graph per bucket: sizes inlined, constants folded, common subexpressions merged.

The dynamic graph is interpreted once on fake tensors of the bucket's shapes. Whatever comes out as
a Python number disappears into its users; whatever depends on no input and no weight is computed
now. Dependencies must be taken from this graph: on the dynamic one every `arange` would hang on
the symbolic size of one feature.
"""

from __future__ import annotations

import hashlib
import heapq
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from recreplay.capture.ingest import Ingested
from recreplay.capture.views import base

aten = torch.ops.aten
_ASSERTS = {
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten._assert_async.msg,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
}


@dataclass
class Program:
    """A static ATen graph of one bucket.

    Placeholders are named by where their value comes from: `input:NAME`, `staged:GROUP` (ids of
    several inputs that lie side by side), `weight:NAME` or `const:HASH`. `meta["val"]` of each
    node is its fake tensor. `outputs` are the nodes that hold the model's outputs, each a node of
    its own.
    """

    bucket: int
    graph: fx.Graph
    outputs: dict[str, fx.Node]
    constants: dict[str, torch.Tensor]
    fake_mode: FakeTensorMode
    staged: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def source(self, kind: str, name: str, value: FakeTensor) -> fx.Node:
        """The placeholder `kind:name`, made when it is first asked for."""
        target = f"{kind}:{name}"
        for found in self.graph.find_nodes(op="placeholder", target=target):
            return cast(fx.Node, found)
        last = None
        for node in self.graph.nodes:
            if node.op != "placeholder":
                break
            last = node
        with self.graph.inserting_after(last) if last else self.graph.inserting_before():
            node = self.graph.create_node("placeholder", target, name=_identifier(kind, name))
        node.meta["val"] = value
        return node

    def constant(self, value: torch.Tensor) -> fx.Node:
        """A placeholder for a folded value, stored once by content."""
        value = value.detach().contiguous().cpu()
        raw = value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
        key = hashlib.sha256(f"{value.dtype}{tuple(value.shape)}".encode() + raw).hexdigest()[:16]
        self.constants[key] = value
        return self.source("const", key, self.fake(value.shape, value.dtype))

    def fake(self, shape: Any, dtype: torch.dtype) -> FakeTensor:
        with self.fake_mode:
            return cast(FakeTensor, torch.empty(tuple(shape), dtype=dtype))

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """Append an operator at the graph's insertion point, with its fake value."""
        node = self.graph.call_function(target, args, kwargs)
        with self.fake_mode:
            values, options = pytree.tree_map_only(fx.Node, lambda n: n.meta["val"], (args, kwargs))
            node.meta["val"] = target(*values, **options)
        return node

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Have everything that reads `old`, the program's outputs included, read `new`."""
        for name, node in self.outputs.items():
            if node is old:
                self.outputs[name] = new
        old.replace_all_uses_with(new)

    def sort(self) -> None:
        """Put the operators into a topological order again, as near to the present one as can
        be."""
        position = {node: i for i, node in enumerate(self.graph.nodes)}
        missing = {n: len(n.all_input_nodes) for n in position}
        ready = [i for n, i in position.items() if not missing[n]]
        nodes = list(position)
        last: fx.Node | None = None
        while ready:
            node = nodes[heapq.heappop(ready)]
            if last is not None:
                last.append(node)
            last = node
            for user in node.users:
                missing[user] -= 1
                if not missing[user]:
                    heapq.heappush(ready, position[user])

    def prune(self) -> None:
        """Drop operators that no output needs; inputs and weights stay only where they are read."""
        kept = set(self.outputs.values())
        for node in reversed(self.graph.nodes):
            if node not in kept and not node.users:
                self.graph.erase_node(node)
        live = {str(n.target) for n in self.graph.find_nodes(op="placeholder")}
        self.constants = {k: v for k, v in self.constants.items() if f"const:{k}" in live}


def specialise(model: Ingested, bucket: int) -> Program:
    """The program of `model` for exactly `bucket` rows."""
    program = Program(bucket, fx.Graph(), {}, {}, FakeTensorMode(allow_non_fake_inputs=True))
    exported = model.exported
    state = {**exported.state_dict, **exported.constants}
    specs = iter(exported.graph_signature.input_specs)
    inputs = iter(model.inputs)
    values: dict[fx.Node, Any] = {}  # old node -> new node, or a Python value
    seen: dict[Any, fx.Node] = {}
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            spec = next(specs)
            if spec.kind == InputKind.USER_INPUT:
                given = next(inputs)
                dtype = getattr(torch, given.dtype)
                values[node] = program.source(
                    "input", given.name, program.fake((bucket, *given.row), dtype)
                )
            elif spec.kind == InputKind.CONSTANT_TENSOR:
                values[node] = program.constant(state[spec.target])
            else:
                weight = state[spec.target]
                values[node] = program.source(
                    "weight", spec.target, program.fake(weight.shape, weight.dtype)
                )
        elif node.op == "call_function":
            values[node] = _emit(program, node, values, seen)
        elif node.op == "output":
            args = pytree.tree_leaves(_mapped(node.args, values))
            kinds = [s.kind for s in exported.graph_signature.output_specs]
            results = [a for a, k in zip(args, kinds, strict=True) if k.name == "USER_OUTPUT"]
            for out, value in zip(model.outputs, results, strict=True):
                program.outputs[out.name] = _own_node(program, value)
    program.prune()
    return program


def _own_node(program: Program, value: fx.Node) -> fx.Node:
    """The output as an operator of its own: no view of an input or a weight, no other output."""
    if base(value).op == "placeholder" or value in program.outputs.values():
        return program.call(aten.clone.default, value)
    return value


def _emit(program: Program, node: fx.Node, values: dict[fx.Node, Any], seen: dict[Any, Any]) -> Any:
    if node.target in _ASSERTS:
        return None
    function = cast("Callable[..., Any]", node.target)
    args, kwargs = _mapped(node.args, values), _mapped(node.kwargs, values)
    # A model is exported where it lives and captured for where it will run.
    kwargs = {k: None if k == "device" else v for k, v in kwargs.items()}
    used = [a for a in pytree.tree_leaves((args, kwargs)) if isinstance(a, fx.Node)]
    key = _cse_key(node.target, args, kwargs)
    if key in seen:
        return seen[key]
    if node.target is operator.getitem and not isinstance(args[0], fx.Node):
        return args[0][args[1]]
    with program.fake_mode:
        fake_args, fake_kwargs = pytree.tree_map_only(
            fx.Node, lambda n: n.meta["val"], (args, kwargs)
        )
        fake = function(*fake_args, **fake_kwargs)
    if not any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(fake)):
        return fake
    if isinstance(fake, torch.Tensor) and _is_identity(node.target, args, used, fake):
        return used[0]
    if isinstance(fake, torch.Tensor) and all(str(n.target).startswith("const:") for n in used):
        real_args, real_kwargs = pytree.tree_map_only(
            fx.Node,
            lambda n: program.constants[str(n.target).removeprefix("const:")],
            (args, kwargs),
        )
        return program.constant(function(*real_args, **real_kwargs))
    new = program.graph.create_node("call_function", node.target, args, kwargs, name=node.name)
    new.meta = {
        "val": fake,
        "module": _module_path(node),
        "stack_trace": node.stack_trace,
    }
    seen[key] = new
    return new


def _mapped(arg: Any, values: dict[fx.Node, Any]) -> Any:
    return fx.node.map_arg(arg, lambda n: values[n])


def _cse_key(target: Any, args: Any, kwargs: Any) -> Any:
    def freeze(arg: Any) -> Any:
        if isinstance(arg, (list, tuple)):
            return tuple(freeze(a) for a in arg)
        if isinstance(arg, dict):
            return tuple(sorted((k, freeze(v)) for k, v in arg.items()))
        return (type(arg).__name__, str(arg)) if not isinstance(arg, fx.Node) else arg

    return (target, freeze(args), freeze(kwargs))


def _is_identity(target: Any, args: Any, used: list[fx.Node], fake: torch.Tensor) -> bool:
    if len(used) != 1:
        return False
    before = used[0].meta["val"]
    if not isinstance(before, torch.Tensor):
        return False
    same = (
        before.shape == fake.shape
        and before.dtype == fake.dtype
        and before.stride() == fake.stride()
    )
    if target in (aten.dropout.default, aten.feature_dropout.default):
        return not args[2]
    return same and target in (
        aten.alias.default,
        aten.detach.default,
        aten.lift_fresh_copy.default,
        aten.clone.default,
        aten._to_copy.default,
        aten.view.default,
        aten.reshape.default,
        aten.expand.default,
        aten.slice.Tensor,
        aten.contiguous.default,
    )


def _module_path(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def _identifier(kind: str, name: str) -> str:
    return f"{kind}_" + "".join(c if c.isalnum() else "_" for c in name)
