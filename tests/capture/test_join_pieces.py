"""Concatenations of adjoining pieces: fewer operands, the same rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from recreplay.capture.program import Program
from recreplay.capture.rewrites.join_pieces import join_pieces
from recreplay.runtime import Runtime

Capture = Callable[..., Path]
aten = torch.ops.aten
ROWS = 3


def program() -> Program:
    return Program(ROWS, fx.Graph(), {}, {}, FakeTensorMode(allow_non_fake_inputs=True))


def run(made: Program, values: dict[str, Tensor]) -> Tensor:
    env: dict[fx.Node, Tensor] = {}
    for node in made.graph.nodes:
        if node.op == "placeholder":
            env[node] = values[str(node.target)]
        else:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
            env[node] = node.target(*args, **kwargs)
    return env[made.outputs["out"]]


def joints(made: Program) -> list[fx.Node]:
    return [n for n in made.graph.nodes if n.target in (aten.cat.default, aten.stack.default)]


# A piece: which of two stacks, which lane of it, and how it is cut; None is the dense input.
PIECES = st.lists(
    st.none() | st.tuples(st.booleans(), st.integers(0, 5), st.sampled_from(["select", "slice"])),
    min_size=1,
    max_size=14,
)


def build(
    pieces: list[tuple[bool, int, str] | None], widths: tuple[int, int, int], apart: bool = False
) -> Program:
    """`cat` along the columns of lanes of `[6, ROWS, width]` and `[6 * ROWS, width]`, each as
    `[ROWS, 1, width]` if `apart`."""
    made = program()
    stacks = [
        made.source("input", name, made.fake((6, ROWS, width), torch.float32))
        for name, width in zip("ab", widths, strict=False)
    ]
    dense = made.source("input", "dense", made.fake((ROWS, widths[2]), torch.float32))
    # What is cut is a dense result of an operator, as a stacked lookup is.
    stacks = [made.call(aten.relu.default, stack) for stack in stacks]
    flat = [
        made.call(aten.view.default, made.call(aten.neg.default, stack), [6 * ROWS, width])
        for stack, width in zip(stacks, widths, strict=False)
    ]
    parts = []
    for piece in pieces:
        if piece is None:
            parts.append(dense)
            continue
        second, lane, how = piece
        if how == "select":
            parts.append(made.call(aten.select.int, stacks[second], 0, lane))
        else:
            begin = lane * ROWS
            parts.append(made.call(aten.slice.Tensor, flat[second], 0, begin, begin + ROWS))
    if apart:
        parts = [made.call(aten.unsqueeze.default, part, 1) for part in parts]
    made.outputs["out"] = made.call(aten.cat.default, parts, -1)
    return made


@settings(max_examples=300, deadline=None)
@given(PIECES, st.sampled_from([(2, 2, 2), (2, 4, 6), (3, 2, 5), (4, 4, 6)]), st.booleans())
def test_the_same_rows_whatever_is_joined(
    pieces: list[tuple[bool, int, str] | None], widths: tuple[int, int, int], apart: bool
) -> None:
    values = {
        f"input:{name}": torch.randn(shape)
        for name, shape in {
            "a": (6, ROWS, widths[0]),
            "b": (6, ROWS, widths[1]),
            "dense": (ROWS, widths[2]),
        }.items()
    }
    made = build(pieces, widths, apart)
    before = run(made, values)
    operands = [len(n.args[0]) for n in joints(made)]
    join_pieces(made)
    after = run(made, values)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert after.is_contiguous()
    left = sum(len(n.args[0]) for n in joints(made))
    assert left == sum(operands) or left <= sum(operands) // 2


LANES = [(False, lane, "select") for lane in range(6)]


@pytest.mark.parametrize(
    ("pieces", "widths", "operands"),
    [
        (LANES, (2, 2, 2), []),  # a whole stack is a copy of it with its dimensions exchanged
        ([None, *LANES], (2, 2, 4), [2]),  # the dense part as two more columns of the width
        ([None, *LANES], (2, 2, 3), [2]),  # no common width: the stack is made dense first
        ([*LANES, *[(True, lane, "slice") for lane in range(1, 5)]], (2, 4, 2), [2]),
        (LANES[::-1], (2, 2, 2), [6]),  # in another order nothing adjoins
        ([LANES[0], None, LANES[1], None], (2, 2, 2), [4]),
        ([LANES[0], LANES[1], None, LANES[3]], (2, 2, 2), [4]),  # too little to gain
    ],
)
@pytest.mark.parametrize("apart", [False, True])
def test_what_adjoins_is_one_operand(
    pieces: list[tuple[bool, int, str] | None],
    widths: tuple[int, int, int],
    operands: list[int],
    apart: bool,
) -> None:
    made = build(pieces, widths, apart)
    join_pieces(made)
    assert [len(n.args[0]) for n in joints(made)] == operands


class Rows(nn.Module):
    """Tables of two widths, one after the other, before a dense part; or dots of all."""

    def __init__(self, dots: bool) -> None:
        super().__init__()
        torch.manual_seed(4)
        widths = [4] * 7 if dots else [4] * 7 + [8] * 5
        self.tables = nn.ModuleList(nn.Embedding(11 + i, d) for i, d in enumerate(widths))
        self.bottom = nn.Linear(3, 4)
        self.dots = dots

    def forward(self, dense: Tensor, ids: list[Tensor]) -> Tensor:
        rows = [table(i) for table, i in zip(self.tables, ids, strict=True)]
        if not self.dots:
            return torch.cat([*rows, dense], dim=1)
        seen = torch.stack([self.bottom(dense), *rows], dim=1)
        return torch.bmm(seen, seen.transpose(1, 2)).flatten(1)


@pytest.mark.parametrize("dots", [False, True])
def test_captured_models_say_the_same(captured: Capture, dots: bool) -> None:
    """Compiled ones are in `test_parity`."""
    model = Rows(dots)

    def example(rows: int) -> dict[str, object]:
        draw = torch.Generator().manual_seed(rows)
        ids = [torch.randint(0, 11, (rows,), generator=draw) for _ in model.tables]
        return {"dense": torch.randn(rows, 3, generator=draw), "ids": ids}

    given = example(3)
    path = captured(model, (given["dense"], given["ids"]), buckets=[1, 4])
    with Runtime.load(path) as runtime, torch.inference_mode():
        for rows in (1, 2, 4, 9):
            request = example(rows)
            arrays = {"dense": request["dense"].numpy()}  # type: ignore[attr-defined]
            arrays |= {f"ids_{i}": t.numpy() for i, t in enumerate(request["ids"])}  # type: ignore[arg-type]
            want = model(**request).numpy()
            np.testing.assert_allclose(runtime.run(arrays)["output"], want, rtol=1e-4, atol=1e-5)
