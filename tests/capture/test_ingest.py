"""What may be captured and under which names, and the refusals that say what to do."""

from __future__ import annotations

import linecache
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from recreplay.capture import capture, load_pt2
from recreplay.capture.ingest import ingest
from recreplay.runtime import Runtime
from recreplay.runtime.errors import CaptureError, UnsupportedModelError

Capture = Callable[..., Path]
X = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 10
IDS = torch.tensor([[0, 1, 2], [3, 4, 0], [1, 1, 1], [2, 0, 4]])


class Pair(nn.Module):
    """`forward` takes two tensors, and is not symmetric in those."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left - 2 * right


class Nested(nn.Module):
    """`forward` takes a list, a dict, and a tensor whose name begins like the list's."""

    def forward(self, ids: list[Tensor], side: dict[str, Tensor], ids_user: Tensor) -> Tensor:
        return ids[0] + 2 * ids[1] + 4 * side["u"] + 8 * side["v"] + 16 * ids_user


class Returns(nn.Module):
    """Returns what `make` makes of x."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x)


class Static(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(4, 6) * 2


def names(model: nn.Module, example: Any) -> list[str]:
    return [spec.name for spec in ingest(model.eval(), example).inputs]


def outputs(make: Callable[[Tensor], Any]) -> list[tuple[str, tuple[int, ...], str]]:
    return [(o.name, o.row, o.dtype) for o in ingest(Returns(make).eval(), (X,)).outputs]


def check_replay(path: Path, model: nn.Module, *arguments: Any, **request: Tensor) -> None:
    """A replay of `request` equals eager on `arguments`."""
    with Runtime.load(path) as runtime, torch.inference_mode():
        got = runtime.run({k: v.numpy() for k, v in request.items()})["output"]
        np.testing.assert_allclose(got, model(*arguments).numpy(), rtol=1e-4, atol=1e-5)


# Names


@pytest.mark.parametrize("example", [(X, X + 1), [X, X + 1], {"right": X + 1, "left": X}])
def test_inputs_are_named_after_the_parameters_in_their_order(example: Any) -> None:
    assert names(Pair(), example) == ["left", "right"]


@pytest.mark.parametrize(
    "example",
    [
        ([X, X], {"u": X, "v": X}, X),
        {"ids": [X, X], "side": {"u": X, "v": X}, "ids_user": X},
        {"ids_user": X, "ids_1": X, "ids_0": X, "side_v": X, "side_u": X},
    ],
)
def test_items_of_list_and_dict_parameters_become_inputs(example: Any) -> None:
    expected = ["ids_0", "ids_1", "side_u", "side_v", "ids_user"]
    assert sorted(names(Nested(), example)) == sorted(expected)


def test_ten_items_of_a_list_keep_their_order(captured: Capture) -> None:
    class Ten(nn.Module):
        def forward(self, x: list[Tensor]) -> Tensor:
            return sum(t * 2**i for i, t in enumerate(x))  # type: ignore[return-value]

    parts = {f"x_{i}": torch.randn(4, 2) for i in range(11)}
    shuffled = dict(sorted(parts.items()))
    assert list(shuffled)[2] == "x_10"
    path = captured(Ten(), shuffled)
    check_replay(path, Ten(), [parts[f"x_{i}"] for i in range(11)], **parts)


def test_each_nested_input_reaches_its_place(captured: Capture) -> None:
    parts = {n: torch.randn(3, 6) for n in ("ids_0", "ids_1", "side_u", "side_v", "ids_user")}
    path = captured(Nested(), parts)
    arguments = (
        [parts["ids_0"], parts["ids_1"]],
        {"u": parts["side_u"], "v": parts["side_v"]},
        parts["ids_user"],
    )
    check_replay(path, Nested(), *arguments, **parts)


def test_one_example_tensor_given_twice_is_two_inputs(captured: Capture) -> None:
    path = captured(Pair(), (X, X))
    left, right = torch.randn(3, 6), torch.randn(3, 6)
    check_replay(path, Pair(), left, right, left=left, right=right)


def test_a_default_parameter_may_be_left_out() -> None:
    class Optional(nn.Module):
        def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
            return x if bias is None else x + bias

    assert names(Optional(), (X,)) == ["x"]
    assert names(Optional(), {"bias": X, "x": X}) == ["x", "bias"]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda x: x * 2, [("output", (6,), "float32")]),
        (lambda x: (x * 2, x.sum(1)), [("output_0", (6,), "float32"), ("output_1", (), "float32")]),
        (lambda x: [x.argmax(1)], [("output_0", (), "int64")]),
        (lambda x: {"z": x > 1, "a": x}, [("z", (6,), "bool"), ("a", (6,), "float32")]),
    ],
)
def test_outputs_are_named_by_place_or_key(make: Callable[[Tensor], Any], expected: Any) -> None:
    assert outputs(make) == expected


def test_dict_outputs_keep_their_values(captured: Capture) -> None:
    model = Returns(lambda x: {"z": x * 2, "a": x.sum(1), "m": x})
    with Runtime.load(captured(model, (X,))) as runtime:
        got = runtime.run({"x": X.numpy()})
    assert list(got) == ["z", "a", "m"]
    np.testing.assert_allclose(got["z"], X * 2)
    np.testing.assert_allclose(got["a"], X.sum(1), rtol=1e-6)
    np.testing.assert_array_equal(got["m"], X)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x[:, :2],  # a view of an input
        lambda x: x.t().t(),
        lambda x: (x, x),  # one tensor under two names
        lambda x: (x * 2)[:, 1:3],  # a view of an operator
        lambda x: [part * 2 for part in x.split(2, dim=1)],  # several views of an input
        lambda x: x.topk(2, dim=1),  # two results of one operator
        lambda x: (x.relu(), x.relu()[:, 0]),
    ],
)
@pytest.mark.parametrize("strategy", ["single", "matching"])
def test_outputs_that_are_views_are_written(
    captured: Capture, make: Callable[[Tensor], Any], strategy: str
) -> None:
    path = captured(Returns(make), (X,), strategy=strategy)
    expected = make(X)
    expected = [expected] if isinstance(expected, Tensor) else list(expected)
    with Runtime.load(path) as runtime:
        got = list(runtime.run({"x": X.numpy()}).values())
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs.numpy())


# Wrong arguments


def refuse(
    model: nn.Module, example: Any, message: str, kind: type[Exception] = CaptureError
) -> None:
    with pytest.raises(kind, match=message):
        ingest(model, example)


def test_a_model_in_training_mode_is_refused() -> None:
    refuse(Pair(), (X, X), r"^Pair is in training mode.*call model\.eval\(\) first$")


def test_a_line_of_a_library_beside_torch_is_named() -> None:
    """As those of torch_rechub or torchrec, whose folders begin with the name of torch's."""
    lines = ["def scored(x):", "    if x.sum() > 0:", "        return x", "    return -x"]
    file = f"{Path(torch.__file__).parent}_models/scores.py"
    linecache.cache[file] = (0, None, [f"{line}\n" for line in lines], file)
    library: dict[str, Any] = {}
    exec(compile("\n".join(lines), file, "exec"), library)

    class Scored(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = library["scored"](x)
            return found

    refuse(Scored().eval(), {"x": X}, rf"on data .* at {re.escape(file)}:2: if x\.sum\(\) > 0:")


def test_a_missing_example_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"^no example inputs for Pair: pass example_inputs"):
        capture(Pair().eval(), out=tmp_path / "a.rr", compiler="eager")


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ((X[:1], X[:1]), r"^example inputs have batch 1; 2 or more is needed"),
        ((X, X[:3]), r"different batch sizes: \{'left': 4, 'right': 3\}"),
        ({"left": X}, r"^no example input for parameter 'right' of Pair\.forward; given: left$"),
        ((X,), r"^no example input for parameter 'right' of Pair\.forward; given: the first 1$"),
        ((X, X, X), r"^3 example inputs for forward\(left, right\)$"),
        (
            {"left": X, "right": X, "middle": X},
            r"^example inputs \['middle'\] fit no parameter of Pair\.forward\(left, right\)$",
        ),
        ((X, 3.0), r"^example input 'right' is a float; expected a tensor \[B, \.\.\.\]$"),
        ((X, torch.tensor(1.0)), r"^example input 'right' is a scalar; expected a tensor"),
    ],
)
def test_a_wrong_example_is_refused(example: Any, message: str) -> None:
    refuse(Pair().eval(), example, message)


@pytest.mark.parametrize("example", [(X, X), {"left": X, "ids_0": X}])
def test_inputs_without_names_are_refused(example: Any) -> None:
    class Many(Pair):
        def forward(self, left: torch.Tensor, *ids: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return sum(ids, left)

    message = (
        r"^inputs cannot be named by \*ids of Many\.forward\(left, \*ids\); capture a module "
        r"around it that takes a list or a dict of tensors there and calls it$"
    )
    refuse(Many().eval(), example, message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buckets": []}, r"^buckets are batch sizes of 1 to 2147483647; got \[\]$"),
        ({"buckets": [2**31]}, r"^buckets are batch sizes of 1 to 2147483647; got \[2147483648\]$"),
        ({"buckets": [0, 2]}, r"^buckets are batch sizes of 1 to 2147483647; got \[0, 2\]$"),
        ({"buckets": [2, 2]}, r"^buckets has repeats: \[2, 2\]$"),
        ({"strategy": "best"}, r"^unknown strategy 'best'; expected single, feature, matching or"),
        ({"streams": 0}, r"^streams must be 1 or more; got 0$"),
        ({"threads": 0}, r"^threads must be 1 or more; got 0$"),
        ({"threads": -3}, r"^threads must be 1 or more; got -3$"),
        ({"rewrites": ["magic"]}, r"^unknown rewrite 'magic'; expected some of fold_weights"),
        ({"compiler": "gcc"}, r"^unknown compiler 'gcc'; expected one of eager, inductor"),
    ],
)
def test_a_wrong_option_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    options = {"compiler": "eager", **options}
    with pytest.raises(CaptureError, match=message):
        capture(Pair().eval(), (X, X), out=tmp_path / "a.rr", **options)
    assert not list(tmp_path.iterdir())


# Models that no static graph can hold


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the line to name
            return x + 1
        return x - 1


class Masks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        kept = x[x > 0]  # the line to name
        return x * kept.sum()


class NonZero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        where = torch.nonzero(x)  # the line to name
        return x + where.sum()


class Item(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.sum().item()  # the line to name


class Conditional(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)  # the line to name


class Dropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)  # the line to name


class OfTheRequest(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.BatchNorm1d(x.shape[1])(x)  # the line to name


class WithoutRunning(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(X.shape[1], track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)  # the line to name


def line_of(model: nn.Module) -> str:
    """`file:line` of the marked line of the model's class."""
    start = forward_line(model)
    lines = Path(__file__).read_text().splitlines()
    offset = next(i for i, line in enumerate(lines[start:]) if "# the line to name" in line)
    return f"{Path(__file__).name}:{start + offset + 1}: "


def forward_line(model: nn.Module) -> int:
    return type(model).forward.__code__.co_firstlineno


@pytest.mark.parametrize(
    ("model", "operator"),
    [
        (Branches(), r"the model branches or sizes a tensor on data \(last operator: '__bool__'"),
        (Masks(), r"operator aten\.index\.Tensor has an output whose size or value depends on"),
        (NonZero(), r"operator aten\.nonzero\.default has an output whose size or value depends"),
        (Item(), r"operator aten\.item\.default has an output whose size or value depends on"),
        (Noise(), r"operator aten\.rand_like\.default draws random numbers"),
        (Dropout(), r"operator aten\.native_dropout\.default draws random numbers"),
        (OfTheRequest(), r"batch_norm\S* normalises by the rows of a request together"),
        (WithoutRunning(), r"batch_norm\S* normalises by the rows of a request together"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_refusals_name_the_operator_and_the_source_line(model: nn.Module, operator: str) -> None:
    refuse(model.eval(), (X,), operator, UnsupportedModelError)
    refuse(model.eval(), (X,), re.escape(line_of(model)), UnsupportedModelError)
    rule = r"; (a captured graph has fixed shapes|a replay must be|each row has to be)"
    refuse(model.eval(), (X,), rule)


def test_a_conditional_program_is_refused() -> None:
    refuse(
        Conditional().eval(), (X,), r"^operator cond runs one of several programs.*torch\.where$"
    )


def test_an_operator_of_another_library_is_refused() -> None:
    with torch.library._scoped_library("recreplay_test", "DEF") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
        torch.library.register_fake("recreplay_test::twice", torch.empty_like, lib=library)

        class Foreign(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.ops.recreplay_test.twice(x)

        message = r"^operator recreplay_test\.twice\.default is not one of torch's own at .*:\d+: "
        refuse(Foreign().eval(), (X,), message, UnsupportedModelError)


def test_a_fixed_batch_is_refused() -> None:
    message = r"^the model fixes its batch at the example's 4.*take sizes from the input's shape"
    refuse(Static().eval(), (X,), message, UnsupportedModelError)


def test_a_model_that_writes_to_a_buffer_is_refused() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.seen.add_(1)
            return x + self.seen

    refuse(Counts().eval(), (X,), r"^the model writes to seen during forward", CaptureError)


def test_a_model_that_writes_to_its_input_is_refused() -> None:
    model = Returns(lambda x: x.add_(1) * 2).eval()
    refuse(model, (X.clone(),), r"^the model writes to x during forward", UnsupportedModelError)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: x.sum(), r"^output 'output' is \(\) for a batch of 4; expected \[4, \.\.\.\]"),
        (lambda x: x.t() * 1, r"^output 'output' is \(6, 4\) for a batch of 4"),
        (lambda x: {"a": x * 1, "b": x.mean()}, r"^output 'b' is \(\) for a batch of 4"),
        (lambda x: (x * 1, [x * 1]), r"^output 'output_1' is list for a batch of 4"),
        (lambda x: (x * 1).bfloat16(), r"^output 'output' has dtype bfloat16; requests are numpy"),
        (lambda x: None, r"^the model returns NoneType; expected a tensor, a tuple or a dict"),
    ],
)
def test_outputs_that_are_not_one_row_per_row_are_refused(
    make: Callable[[Tensor], Any], message: str
) -> None:
    refuse(Returns(make).eval(), (X,), message, UnsupportedModelError)


def test_an_input_that_numpy_cannot_hold_is_refused() -> None:
    message = r"^input 'x' has dtype bfloat16; requests are numpy arrays"
    refuse(Returns(lambda x: x.float()).eval(), (X.bfloat16(),), message, UnsupportedModelError)


# Saved programs


class Scorer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.Embedding(5, 4)
        self.head = nn.Linear(10, 2)

    def forward(self, Dense: Tensor, ids: Tensor) -> dict[str, Tensor]:
        row = torch.cat([Dense, self.table(ids).sum(1)], dim=1)
        return {"score": self.head(row), "norm": row.norm(dim=1)}


def save(model: nn.Module, example: Any, path: Path, shapes: Any, keywords: bool = False) -> Path:
    arguments = ((), example) if keywords else (tuple(example.values()), {})
    exported = torch.export.export(
        model.eval(), *arguments, dynamic_shapes=None if shapes is None else shapes
    )
    torch.export.save(exported, path)
    return path


@pytest.mark.parametrize("keywords", [False, True])
def test_a_saved_program_replays_like_its_module(tmp_path: Path, keywords: bool) -> None:
    model, batch = Scorer().eval(), Dim("batch", min=1)
    example = {"Dense": X, "ids": IDS}
    shapes = {"Dense": {0: batch}, "ids": {0: batch}}
    saved = save(model, example, tmp_path / "m.pt2", shapes, keywords)
    options: Any = {"buckets": [1, 4], "compiler": "eager"}
    program = capture(load_pt2(saved), out=tmp_path / "program.rr", **options)
    capture(model, example, out=tmp_path / "module.rr", **options)
    first, second = (spec.name for spec in program.inputs)
    assert second == "ids"
    with (
        Runtime.load(tmp_path / "program.rr") as mine,
        Runtime.load(tmp_path / "module.rr") as theirs,
    ):
        for rows in (1, 3, 4, 9):
            dense, ids = np.random.rand(rows, 6).astype("f4"), np.random.randint(0, 5, (rows, 3))
            got = mine.run({first: dense, second: ids})
            expected = theirs.run({"Dense": dense, "ids": ids})
            assert list(got) == ["score", "norm"]
            for name, value in expected.items():
                np.testing.assert_array_equal(got[name], value)
        with pytest.raises(ValueError, match=r"id 5 is out of range; table 'table\.weight' has 5"):
            mine.run({first: dense[:1], second: np.array([[0, 5, 0]])})


def test_a_saved_program_with_a_fixed_batch_is_refused(tmp_path: Path) -> None:
    saved = save(Pair(), {"left": X, "right": X + 1}, tmp_path / "m.pt2", None)
    message = r"^input 'left' has a fixed batch of 4; export the model with dynamic_shapes="
    with pytest.raises(UnsupportedModelError, match=message):
        capture(load_pt2(saved), out=tmp_path / "m.rr", compiler="eager")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.pt2"]


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [(1, 4, "is for batches of 1 to 4; export"), (3, None, "is for batches of 3 to int_oo; ex")],
)
def test_a_saved_program_for_some_batches_only_is_refused(
    low: int, high: int | None, message: str
) -> None:
    batch = Dim("batch", min=low, max=high)
    exported = torch.export.export(
        Returns(lambda x: x * 2).eval(), (X,), dynamic_shapes=({0: batch},)
    )
    with pytest.raises(UnsupportedModelError, match=message):
        ingest(exported, None)


def test_two_batch_sizes_in_one_program_are_refused() -> None:
    class Loose(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return x * 2, y * 3

    exported = torch.export.export(
        Loose().eval(), (X, X[:3]), dynamic_shapes=({0: Dim("a", min=1)}, {0: Dim("b", min=1)})
    )
    message = r"^inputs have different batch symbols \(.*, .*\); all must share one$"
    with pytest.raises(UnsupportedModelError, match=message):
        ingest(exported, (X, X))


def test_a_second_dynamic_dimension_is_refused() -> None:
    exported = torch.export.export(
        Returns(lambda x: x * 2).eval(), (X,), dynamic_shapes=({0: Dim("a", min=1), 1: Dim("w")},)
    )
    with pytest.raises(UnsupportedModelError, match="only dimension 0, the batch, may vary"):
        ingest(exported, None)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ((X, X, X), r"^3 example inputs; the exported program takes 2: left, right$"),
        ({"left": X, "up": X}, r"^example inputs are named \['left', 'up'\]; the exported program"),
    ],
)
def test_a_wrong_example_for_a_program_is_refused(example: Any, message: str) -> None:
    shapes = ({0: (batch := Dim("batch", min=1))}, {0: batch})
    exported = torch.export.export(Pair().eval(), (X, X + 1), dynamic_shapes=shapes)
    with pytest.raises(CaptureError, match=message):
        ingest(exported, example)


def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.pt2"
    garbage.write_bytes(b"\x00not a program" * 50)
    with pytest.raises(CaptureError, match=r"garbage\.pt2 is not a program saved by torch\.export"):
        load_pt2(garbage)
    with pytest.raises(CaptureError, match=r"absent\.pt2 is not a program saved by torch\.export"):
        load_pt2(tmp_path / "absent.pt2")
