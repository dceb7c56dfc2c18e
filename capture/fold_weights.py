"""What a model computes of its weights alone is made once, as a weight (`runtime.made_weights`).

Constants are folded when a model is specialised; this is the same of what a refresh may change:
layers with a normalisation, low-rank sums, casts of autocast, rows of unit length, positions.
Values that a bucket's number of rows is in stay, and so do those that take more memory than what
they are made of, unless a cache holds them.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from recreplay.capture.program import Program
from recreplay.capture.views import aliases, base
from recreplay.runtime.aten import Operator, encode, target_name
from recreplay.runtime.made_weights import WEIGHT, Made

aten = torch.ops.aten
_SMALL = 4 << 20  # bytes that stay in a last cache, beside the other weights of a bucket


def call(program: Program, target: Any, *args: Any) -> fx.Node:
    """An operator as `Program.call` appends it, or the weight that it makes of others."""
    with program.fake_mode:
        fake = target(*pytree.tree_map_only(fx.Node, lambda n: n.meta["val"], args))
    folded = fold(program, target, args, {}, fake)
    return program.call(target, *args) if folded is None else folded


def fold(program: Program, target: Any, args: Any, kwargs: Any, fake: Any) -> fx.Node | None:
    """The weight that `target` makes of others; None where it does something else, as views do."""
    read = [n for n in pytree.tree_leaves((args, kwargs)) if isinstance(n, fx.Node)]
    kinds = {str(base(n).target).partition(":")[0] for n in read}
    of_weights = "weight" in kinds and kinds <= {"weight", "const"}
    if not program.folds or not of_weights or not isinstance(fake, torch.Tensor):
        return None
    if not isinstance(target, torch._ops.OpOverload) or aliases(target):
        return None
    made = _recipe(program, target, args, kwargs)
    sources = {name: _bytes(program.find(WEIGHT + name).meta["val"]) for name in made.weights}
    if _bytes(fake) > max(sum(sources.values()), _SMALL):
        return None
    text = json.dumps([op.to_json() for op in made.operators])
    largest = max(sources, key=lambda name: sources[name])
    name = f"{largest}#{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    program.made[name] = made
    return program.source("weight", name, program.fake(fake.shape, fake.dtype))


def is_table(read: fx.Node) -> bool:
    """Whether a weight is looked up as well: its rows are not doubled, as there may be many."""
    return bool(base(read).meta.get("looked_up", False))


def whole(program: Program, read: fx.Node) -> fx.Node:
    """A part of a weight (one of several matrices in a parameter, rows of one) as a weight of its
    own, which rewrites may lay out as products want it; anything else as it is, tables too."""
    stored, value = base(read), read.meta["val"]
    if not str(stored.target).startswith(WEIGHT) or is_table(read):
        return read
    if value.numel() == stored.meta["val"].numel():
        return read
    return laid_out(program, read) or read


def laid_out(program: Program, view: fx.Node) -> fx.Node | None:
    """A view of a weight as a weight of its own, which lies as it is read; None where `fold` makes
    none."""
    with program.fake_mode:
        fake = view.meta["val"].contiguous()
    options = {"memory_format": torch.contiguous_format}
    return fold(program, aten.clone.default, (view,), options, fake)


def _bytes(value: torch.Tensor) -> int:
    return value.numel() * value.itemsize


def _recipe(program: Program, target: Any, args: Any, kwargs: Any) -> Made:
    """How it is made of what is stored: views on the way and weights that are made themselves
    included, each operator once."""
    found: dict[str, Operator] = {}
    names: dict[fx.Node, str] = {}

    def add(target: str, args: Any, kwargs: Any) -> str:
        key = json.dumps([target, args, kwargs])
        name = f"v{len(found)}"
        return found.setdefault(key, Operator(name, target, tuple(args), kwargs)).name

    def splice(made: Made) -> str:
        renamed: dict[str, str] = {}
        for op in made.operators:
            args, kwargs = (_renamed(a, renamed) for a in (list(op.args), op.kwargs))
            renamed[op.name] = add(op.target, args, kwargs)
        return renamed[made.operators[-1].name]

    def name_of(arg: Any) -> str | None:
        if not isinstance(arg, fx.Node):
            return None
        if arg not in names:
            if arg.op == "placeholder":
                made = program.made.get(str(arg.target).removeprefix(WEIGHT))
                names[arg] = str(arg.target) if made is None else splice(made)
            else:
                names[arg] = coded(arg.target, arg.args, arg.kwargs)
        return names[arg]

    def coded(target: Any, args: Any, kwargs: Any) -> str:
        given = [encode(a, name_of) for a in args]
        return add(target_name(target), given, {k: encode(v, name_of) for k, v in kwargs.items()})

    coded(target, args, kwargs)
    return Made(tuple(found.values()))


def _renamed(arg: Any, names: dict[str, str]) -> Any:
    """An encoded argument that reads results under other names."""
    if isinstance(arg, dict):
        if "value" in arg:
            return {"value": names.get(arg["value"], arg["value"])}
        return {k: _renamed(v, names) for k, v in arg.items()}
    return [_renamed(a, names) for a in arg] if isinstance(arg, list) else arg
