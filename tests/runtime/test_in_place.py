"""Results written where they are wanted: the same numbers, in the caller's tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from recreplay.runtime.aten import Operator, bind, target_name
from recreplay.runtime.in_place import writing_form

aten = torch.ops.aten
CPU = torch.device("cpu")
X, Y = torch.randn(4, 6), torch.randn(4, 6)
IDS = torch.tensor([[0, 3, 5], [1, 1, 2]])
WITH_FORM: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = [
    (aten.add.Tensor, (X, Y), {"alpha": 2}),
    (aten.mul.Tensor, (X, Y[:, :1]), {}),
    (aten.cat.default, ([X, Y[:, 1:]], 1), {}),
    (aten.addmm.default, (X[0, :4], X, Y.t()), {}),
    (aten._addmm_activation.default, (X[0, :4], X, Y.t()), {}),
    (aten.bmm.default, (X.view(2, 2, 6), Y.view(2, 6, 2)), {}),
    (aten.sum.dim_IntList, (X, [1], True), {}),
    (aten.mean.dim, (X, [0]), {}),
    (aten.sigmoid.default, (X.t(),), {}),
    (aten._softmax.default, (X, -1, False), {}),
    (aten.index_select.default, (X, 0, IDS.flatten() % 4), {}),
    (aten.embedding.default, (Y.repeat(2, 1), IDS), {}),
    (aten.embedding.default, (Y.repeat(2, 1), IDS.int(), 0), {}),
    (aten.embedding.default, (Y.repeat(2, 1), IDS[:, :0]), {}),
    (aten.relu.default, (torch.tensor([[-1.0, float("nan"), 2.0, float("-inf")]]),), {}),
]
WITHOUT = [aten.linear.default, aten.embedding_bag.padding_idx, aten.clone.default, max]


@pytest.mark.parametrize(
    ("function", "args", "kwargs"), WITH_FORM, ids=[str(f) for f, _, _ in WITH_FORM]
)
def test_what_is_written_is_what_is_returned(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    want = function(*args, **kwargs)
    out = torch.full(want.shape, 7.0)
    form = writing_form(function, "cpu")
    assert form is not None
    form(*args, **kwargs, out=out)
    # Results of other strides are computed by vectors or one by one: that is the last two bits.
    last_bits = 2**-22 if want.stride() != out.stride() else 0
    torch.testing.assert_close(out, want, rtol=last_bits, atol=0, equal_nan=True)


@pytest.mark.parametrize("function", WITHOUT, ids=str)
def test_others_have_no_such_form(function: Callable[..., Any]) -> None:
    assert writing_form(function, "cpu") is None


def test_a_program_writes_its_results_where_it_is_told() -> None:
    """A result that its operator cannot write in place is a tensor of its own, as before."""
    program = [
        ("layer", aten.linear.default, ({"value": "x"}, {"value": "w"}), {}),
        ("seen", aten.relu.default, ({"value": "layer"},), {}),
        ("both", aten.add.Tensor, ({"value": "seen"}, {"value": "layer"}), {}),
    ]
    operators = [Operator(name, target_name(t), a, k) for name, t, a, k in program]
    x, w = torch.randn(3, 5), torch.randn(2, 5)
    into = {name: torch.zeros(3, 2) for name in ("layer", "seen", "both")}
    run = bind(operators, {"x": x, "w": w}, ["both", "seen", "layer"], CPU, into)
    for _ in range(2):
        x.normal_()
        both, seen, layer = run()
        assert both is into["both"]
        assert seen is into["seen"]
        assert layer is not into["layer"]
        expected = torch.nn.functional.linear(x, w)
        torch.testing.assert_close(layer, expected, rtol=0, atol=0)
        torch.testing.assert_close(both, expected.relu() + expected, rtol=0, atol=0)
