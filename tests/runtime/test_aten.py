"""Stored operators: every argument survives, and nothing but ATen can be called."""

from __future__ import annotations

import json
import math
import operator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recreplay.runtime.aten import Operator, bind, decode, encode, resolve, target_name
from recreplay.runtime.errors import ArtifactCorruptError

aten = torch.ops.aten
CPU = torch.device("cpu")


def no_name(arg: Any) -> str | None:
    return None


def again(arg: Any) -> Any:
    """`arg` after a trip through JSON."""
    found = json.loads(json.dumps(encode(arg, no_name), allow_nan=False))
    return [decode(a, CPU) for a in found] if isinstance(found, list) else decode(found, CPU)


@pytest.mark.parametrize(
    "arg",
    [
        *(None, True, False, 0, 1, -5, 2**62, 1.5, -0.0, 1e-30, "mean"),
        *(math.inf, -math.inf, 1 + 2j, complex(math.inf, -0.0)),
        *(torch.float32, torch.int64, torch.bool, torch.float16),
        *(torch.contiguous_format, torch.preserve_format, torch.channels_last),
        *(torch.strided, CPU),
        *([], [1, 2], [1, 2.5, None], [-1]),
    ],
    ids=str,
)
def test_arguments_survive(arg: Any) -> None:
    found = again(arg)
    assert found == arg
    assert type(found) is type(arg)
    assert str(found) == str(arg)  # tells 0.0 from -0.0


def test_not_a_number_survives() -> None:
    assert math.isnan(again(math.nan))


def test_devices_become_the_one_that_runs() -> None:
    assert decode(encode(torch.device("meta"), no_name), CPU) == CPU


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda children: st.lists(children, max_size=3),
        max_leaves=8,
    )
)
def test_plain_arguments_survive(arg: Any) -> None:
    def whole(found: Any) -> Any:
        return [whole(f) for f in found] if isinstance(found, list) else decode(found, CPU)

    assert whole(json.loads(json.dumps(encode(arg, no_name)))) == arg


@pytest.mark.parametrize("arg", [object(), {1: 2}, slice(1), b"x", torch.ones(1)], ids=type)
def test_other_arguments_cannot_be_stored(arg: Any) -> None:
    message = rf"^an argument of type {type(arg).__name__} cannot be stored: "
    with pytest.raises(TypeError, match=message):
        encode([1, arg], no_name)


@pytest.mark.parametrize("arg", [{}, {"what": 1}, {"dtype": 3}, {"device": "cuda"}])
def test_unknown_arguments_are_refused(arg: Any) -> None:
    with pytest.raises(
        ArtifactCorruptError, match=r"^unknown argument \{.*\} in a stored operator$"
    ):
        decode(arg, CPU)


# Targets


@pytest.mark.parametrize("target", [aten.linear.default, aten.sum.dim_IntList, operator.getitem])
def test_targets_survive(target: Any) -> None:
    assert resolve(target_name(target)) is target


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "os.path.join",
        "builtins.eval",
        "eval",
        "",
        "aten",
        "aten.linear",
        "aten.linear.nothing",
        "aten.nothing.default",
        "aten.__class__.__init__",
        "aten.linear.__call__",
        "aten.linear.op",
        "aten.linear.default.__call__",
        "prims.add.default",
        "atenx.linear.default",
        "getitem.default",
        ".linear.default",
    ],
)
def test_anything_but_an_aten_operator_is_refused(target: str) -> None:
    message = r"^a stored segment calls '.*', which torch .* does not have; capture the model again"
    with pytest.raises(ArtifactCorruptError, match=message):
        resolve(target)


@pytest.mark.parametrize("target", [len, torch.add, aten.linear, torch.ops.prims.add.default])
def test_other_targets_cannot_be_stored(target: Any) -> None:
    with pytest.raises(TypeError, match=r"is not an ATen operator$"):
        target_name(target)


# Programs

PROGRAM = [
    ("a", aten.relu.default, ({"value": "x"},), {}),
    ("parts", aten.split.Tensor, ({"value": "a"}, 2, 1), {}),
    ("left", operator.getitem, ({"value": "parts"}, 0), {}),
    ("right", operator.getitem, ({"value": "parts"}, 1), {}),
    ("both", aten.cat.default, ([{"value": "right"}, {"value": "left"}], 1), {}),
    ("out", aten.mul.Tensor, ({"value": "both"}, {"value": "w"}), {}),
    ("cast", aten._to_copy.default, ({"value": "out"},), {"dtype": {"dtype": "float64"}}),
]


def program() -> list[Operator]:
    return [Operator(name, target_name(t), args, kwargs) for name, t, args, kwargs in PROGRAM]


def test_a_program_runs_like_its_operators_and_reads_its_inputs_each_time() -> None:
    x, w = torch.randn(3, 4), torch.tensor(2.0)
    run = bind(program(), {"x": x, "w": w}, ["cast", "a", "x"], CPU)
    for _ in range(3):
        x.normal_()
        w.normal_()
        cast, a, same = run()
        expected = x.relu()
        assert torch.equal(a, expected)
        assert torch.equal(cast, (torch.cat([expected[:, 2:], expected[:, :2]], 1) * w).double())
        assert same is x


def test_operators_survive_json_and_know_what_they_use() -> None:
    for op in program():
        assert Operator.from_json(json.loads(json.dumps(op.to_json()))).to_json() == op.to_json()
    assert program()[4].uses() == ["right", "left"]
    assert program()[6].uses() == ["out"]


def test_values_are_dropped_after_their_last_use() -> None:
    freed = []

    class Noticed(torch.Tensor):
        def __del__(self) -> None:
            freed.append(1)

    x = torch.randn(2, 2).as_subclass(Noticed)
    operators = [
        Operator("a", "aten.relu.default", ({"value": "x"},), {}),
        Operator("b", "aten.neg.default", ({"value": "a"},), {}),
        Operator("c", "aten.neg.default", ({"value": "b"},), {}),
    ]
    run = bind(operators, {"x": x}, ["c"], CPU)
    freed.clear()
    kept = run()
    assert len(freed) == 2  # a and b, while c is kept
    del kept
    assert len(freed) == 3
