"""One static graph per bucket: sizes inlined, constants folded, common subexpressions merged.

The dynamic graph is interpreted once on fake tensors of the bucket's shapes. Whatever comes out as
a Python number disappears into its users; whatever depends on no input and no weight is computed
now. Dependencies must be taken from this graph: on the dynamic one every `arange` would hang on
the symbolic size of one feature.

Operators of the user side are emitted for the number of users instead, and what leaves that side
is brought to the rows of the bucket where it is first read.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from recreplay.capture.alike import TABLE_READS
from recreplay.capture.fold_weights import fold, whole
from recreplay.capture.freeze import freeze
from recreplay.capture.functional import SIZE_CHECKS
from recreplay.capture.ingest import Ingested
from recreplay.capture.jagged_axis import bag_arguments, first_symbol, name_bag_arguments
from recreplay.capture.jagged_bags import bag_with_room
from recreplay.capture.jagged_places import items_of_places
from recreplay.capture.one_row import SQUEEZES, VIEWS, squeezed, viewable
from recreplay.capture.plain_cells import as_cell
from recreplay.capture.plain_contractions import as_contraction
from recreplay.capture.plain_layers import as_layer, is_plain_layer, spell_out
from recreplay.capture.plain_norms import as_factors
from recreplay.capture.plain_sums import as_product
from recreplay.capture.program import Program
from recreplay.capture.user_side import CandidateValues, number, user_operators, user_sizes
from recreplay.capture.views import base
from recreplay.runtime.spec import InputSpec

aten = torch.ops.aten


def specialise(model: Ingested, bucket: int, folds: bool = True) -> Program:
    """The program of `model` for exactly `bucket` rows, and as many users as a request may have.

    `folds`: what it computes of weights alone becomes a weight, see `fold_weights`.
    """
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    program = Program(bucket, fx.Graph(), {}, {}, fake_mode, folds=folds)
    program.dividers = frozenset(
        s.name for s in model.inputs if s.kind not in ("rows", "values", "mask")
    )
    exported = model.exported
    inputs = _inputs(model)
    side = user_operators(exported.graph, inputs, SIZE_CHECKS) if model.users else frozenset()
    by_user = _UserSide(program, model, inputs)
    values = CandidateValues(
        program, model.users, by_user.values
    )  # old node -> new node or Python value
    seen: dict[Any, Any] = {}
    specs = iter(exported.graph_signature.input_specs)
    state = {**exported.state_dict, **exported.constants}
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            spec = next(specs)
            if spec.kind == InputKind.USER_INPUT:
                given = inputs[node]
                home = by_user.values if node in side else values
                home[node] = _placeholder(program, given, model.users if given.user else bucket)
                continue
            if spec.kind == InputKind.CONSTANT_TENSOR:
                values[node] = program.constant(state[spec.target])
            else:
                weight = state[spec.target]
                values[node] = program.source(
                    "weight", spec.target, program.fake(weight.shape, weight.dtype)
                )
                values[node].meta["looked_up"] = any(u.target in TABLE_READS for u in node.users)
            by_user.values[node] = values[node]
        elif node.op == "call_function":
            if side:
                by_user.visit(node, node in side, seen)
            if node not in side:
                values[node] = _emit(program, node, values, seen, inputs)
        elif node.op == "output":
            args = pytree.tree_leaves(_mapped(node.args, values))
            kinds = [s.kind for s in exported.graph_signature.output_specs]
            results = [a for a, k in zip(args, kinds, strict=True) if k.name == "USER_OUTPUT"]
            for out, value in zip(model.outputs, results, strict=True):
                program.outputs[out.name] = _own_node(program, value)
    program.prune()
    # On the way to others, or bound to nothing that is read.
    read = program.placeholders
    program.made = {k: made for k, made in program.made.items() if f"weight:{k}" in read}
    program.prune()
    return program


def _inputs(model: Ingested) -> dict[fx.Node, InputSpec]:
    """The placeholders of the exported program that are inputs, and what they are."""
    placeholders = model.exported.graph.find_nodes(op="placeholder")
    kinds = [spec.kind for spec in model.exported.graph_signature.input_specs]
    nodes = [n for n, k in zip(placeholders, kinds, strict=True) if k == InputKind.USER_INPUT]
    return dict(zip(nodes, [s for s in model.inputs if s.kind != "index"], strict=True))


def _placeholder(program: Program, given: InputSpec, rows: int) -> fx.Node:
    """An input as the model sees it: of offsets, without what is staged behind them."""
    dtype = getattr(torch, given.dtype)
    node = program.source("input", given.name, program.fake(given.staged(rows), dtype))
    if given.kind in ("offsets", "starts"):
        return program.call(aten.slice.Tensor, node, 0, 0, rows + (given.kind == "offsets"))
    return node


class _UserSide:
    """Emits operators for the number of users instead of for the rows of the bucket."""

    def __init__(self, program: Program, model: Ingested, inputs: dict[fx.Node, InputSpec]) -> None:
        self.values: dict[fx.Node, Any] = {}
        self._program = program
        self._inputs = inputs
        self._sizes = user_sizes(inputs, model.users) if model.users else {}

    def visit(self, node: fx.Node, mine: bool, seen: dict[Any, Any]) -> None:
        """Emit `node` if it is of this side or depends on no input, and know it if a number."""
        value = node.meta.get("val")
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool)):
            self.values[node] = number(value, self._sizes)
        elif mine or all(n in self.values for n in node.all_input_nodes):
            last = next(iter(reversed(self._program.graph.nodes)), None)
            self.values[node] = _emit(self._program, node, self.values, seen, self._inputs)
            for made in reversed(self._program.graph.nodes) if mine else ():
                if made is last:
                    break
                made.meta["user"] = True


def _own_node(program: Program, value: fx.Node) -> fx.Node:
    """The output as an operator of its own: no view of an input or a weight, no other output."""
    if base(value).op == "placeholder" or value in program.outputs.values():
        return program.call(aten.clone.default, value)
    return value


def _emit(
    program: Program,
    node: fx.Node,
    values: dict[fx.Node, Any],
    seen: dict[Any, Any],
    inputs: Mapping[fx.Node, InputSpec],
) -> Any:
    if node.target in SIZE_CHECKS:
        return None
    target = cast("Callable[..., Any]", node.target)
    args, kwargs = _mapped(node.args, values), _mapped(node.kwargs, values)
    # A model is exported where it lives and captured for where it will run.
    kwargs = {k: None if k == "device" else v for k, v in kwargs.items()}
    if node.target is aten.embedding_bag.padding_idx:
        division = _division(node, inputs)
        if division is not None:
            staged = program.find(f"input:{division.name}")
            bag = bag_with_room(program, name_bag_arguments(args, kwargs), division, staged)
            return [bag]
    if node.target is aten._padded_dense_to_jagged_forward.default:
        return items_of_places(program, args[0], args[1][0], args[2])
    if node.target is aten.linear.default and not is_plain_layer(*args[1:]):
        return spell_out(program, *args)
    if node.target is aten.linear.default:
        args = (args[0], whole(program, args[1]), *args[2:])
    if target in SQUEEZES:
        target, args = aten.squeeze.dims, (args[0], squeezed(node))
    if target in VIEWS:
        args = (viewable(program, *args), args[1])
    used = [a for a in pytree.tree_leaves((args, kwargs)) if isinstance(a, fx.Node)]
    key = _cse_key(target, args, kwargs)
    if key in seen:
        return seen[key]
    layer = as_layer(program, target, args, kwargs)
    if layer is None and not kwargs:
        layer = (
            as_contraction(program, target, args)
            or as_product(program, target, args)
            or as_cell(program, target, args)
        )
    if layer is not None:
        seen[key] = layer
        return layer
    if (normalised := as_factors(program, node, args)) is not None:
        seen[key] = normalised
        return normalised
    if target is operator.getitem and not isinstance(args[0], fx.Node):
        return args[0][args[1]]
    with program.fake_mode:
        fake_args, fake_kwargs = pytree.tree_map_only(
            fx.Node, lambda n: n.meta["val"], (args, kwargs)
        )
        fake = target(*fake_args, **fake_kwargs)
    if not any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(fake)):
        return fake
    if isinstance(fake, torch.Tensor) and _is_identity(target, args, used, fake):
        return used[0]
    if isinstance(fake, torch.Tensor) and all(str(n.target).startswith("const:") for n in used):
        real_args, real_kwargs = pytree.tree_map_only(
            fx.Node,
            lambda n: program.constants[str(n.target).removeprefix("const:")],
            (args, kwargs),
        )
        return program.constant(target(*real_args, **real_kwargs))
    if _is_static(node) and (folded := fold(program, target, args, kwargs, fake)) is not None:
        seen[key] = folded
        return folded
    new = program.graph.create_node("call_function", target, args, kwargs, name=node.name)
    new.meta = {
        "val": fake,
        "module": _module_path(node),
        "stack_trace": node.stack_trace,
    }
    seen[key] = new
    return new


def _is_static(node: fx.Node) -> bool:
    """Whether an exported operator is the same for any number of rows."""
    values = [n.meta.get("val") for n in (node, *node.all_input_nodes)]
    shapes = (v.shape if isinstance(v, torch.Tensor) else [v] for v in values)
    return not any(isinstance(d, torch.SymInt) for shape in shapes for d in shape)


def _division(bag: fx.Node, inputs: Mapping[fx.Node, InputSpec]) -> InputSpec | None:
    """What divides the ids of an exported `embedding_bag` among rows, if they are jagged."""
    axis = first_symbol(bag_arguments(bag)["indices"])
    for node, spec in inputs.items():
        if spec.kind == "values" and first_symbol(node) == axis:
            return next(s for s in inputs.values() if s.name == spec.along)
    return None


def _mapped(arg: Any, values: dict[fx.Node, Any]) -> Any:
    return fx.node.map_arg(arg, lambda n: values[n])


def _cse_key(target: Any, args: Any, kwargs: Any) -> Any:
    return (target, freeze((args, kwargs), lambda node: node))


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
