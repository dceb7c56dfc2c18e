"""Ids are checked however the model takes them out of an input, and never read another table."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recreplay.capture.ingest import ingest
from recreplay.capture.lookups import id_bounds
from recreplay.capture.sampling import sample_request
from recreplay.capture.specialise import specialise
from recreplay.runtime import Runtime
from recreplay.runtime.errors import CaptureError, IdRangeError, ReplayError
from recreplay.runtime.spec import InputSpec

Capture = Callable[..., Path]
ROWS = (10, 50, 50)


class Tables(nn.Module):
    """Tables of one width; `take` gives the ids of each."""

    def __init__(self, take: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows, 4) for rows in ROWS)
        self.take = take

    def forward(self, x: Tensor) -> Tensor:
        ids = self.take(x)
        return torch.cat([t(i.long()) for t, i in zip(self.tables, ids, strict=True)], -1)


def example(dtype: torch.dtype) -> dict[str, Tensor]:
    return {"x": torch.tensor([[0, 49, 3], [9, 1, 49], [4, 0, 0]]).to(dtype)}


TAKES: dict[str, Callable[[Tensor], Any]] = {
    "unbind": lambda x: x.unbind(1),
    "split": lambda x: [part[:, 0] for part in x.split(1, 1)],
    "chunk": lambda x: [part.squeeze(1) for part in x.chunk(3, -1)],
    "transposed": lambda x: list(x.t()),
    "named": lambda x: [x[:, [1, 0, 2]][:, i] for i in (1, 0, 2)],
    "selected": lambda x: x.index_select(1, torch.tensor([2, 0, 1])).roll(-1, 1).unbind(1),
    "flipped": lambda x: x.flip(1).unbind(1)[::-1],
    "backwards": lambda x: [x.transpose(0, 1)[i - 3] for i in range(3)],
}


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
@pytest.mark.parametrize("how", TAKES)
def test_columns_are_checked(captured: Capture, how: str, dtype: torch.dtype) -> None:
    model = Tables(TAKES[how])
    given = example(dtype)
    with Runtime.load(captured(model, given)) as runtime, torch.inference_mode():
        assert runtime.manifest.unchecked == ()
        want = model(given["x"]).numpy()
        np.testing.assert_array_equal(runtime.run(given)["output"], want)
        given["x"][1, 0] = 25
        with pytest.raises(
            IdRangeError, match=r"^input 'x' column 0, row 1: id 25(\.0)? is out of range; table 't"
        ):
            runtime.run(given)


def test_ids_put_together_of_inputs_are_checked_in_each(captured: Capture) -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(20, 4)

        def forward(self, tag: Tensor, x: Tensor) -> Tensor:
            return self.table(torch.cat([tag[:, None], torch.stack([x[:, 2], x[:, 0]], 1)], 1))

    given = {"tag": torch.tensor([3, 19, 0]), "x": torch.tensor([[1, 99, 3]] * 3)}
    with Runtime.load(captured(Joined(), given)) as runtime:
        bounds = [(b.input, b.column, b.rows) for b in runtime.manifest.bounds]
        assert sorted(bounds, key=str) == [("tag", None, 20), ("x", 0, 20), ("x", 2, 20)]
        runtime.run(given)
        given["tag"][2] = 20
        with pytest.raises(IdRangeError, match=r"^input 'tag', row 2: id 20 is out of range"):
            runtime.run(given)


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bags = nn.EmbeddingBag(20, 4, mode="sum")

    def forward(self, x: Tensor) -> Tensor:
        return self.bags(x[:, 1:])


def test_several_columns_of_one_lookup_are_checked_each(captured: Capture) -> None:
    given = {"x": torch.tensor([[99, 3, 4], [99, 19, 0]])}
    with Runtime.load(captured(Bag(), given)) as runtime:
        assert [(b.column, b.rows) for b in runtime.manifest.bounds] == [(1, 20), (2, 20)]
        runtime.run(given)
        given["x"][0, 2] = 20
        with pytest.raises(
            IdRangeError, match=r"^input 'x' column 2, row 0: id 20 is out of range"
        ):
            runtime.run(given)


COMPUTED: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "modulo": (lambda x: x % 10, True),
    "clamped": (lambda x: x.clamp(0, 9), True),
    "narrow": (lambda x: (x % 10).to(torch.uint8), True),
    "too many": (lambda x: x % 11, False),
    "shifted": (lambda x: x + 1, False),
}


@pytest.mark.parametrize("how", COMPUTED)
def test_computed_ids_never_read_another_table(captured: Capture, how: str) -> None:
    """Stacked with others where they cannot leave their table, else left to what eager does."""
    change, safe = COMPUTED[how]
    model = Tables(lambda x: [change(x[:, 0]), x[:, 1], x[:, 2]])
    given = {"x": torch.tensor([[0, 49, 3], [8, 1, 49], [4, 0, 0]])}
    path = captured(model, given, rewrites=("stack_lookups",))
    with Runtime.load(path) as runtime, torch.inference_mode():
        operators = [o for s in runtime.manifest.buckets[0].segments for o in s.operators]
        assert sum("embedding" in o for o in operators) == (1 if safe else 2)
        np.testing.assert_array_equal(runtime.run(given)["output"], model(given["x"]).numpy())
        given["x"][1, 0] = 10 + 11 * 3
        if safe:
            np.testing.assert_array_equal(runtime.run(given)["output"], model(given["x"]).numpy())
        else:
            kind = IdRangeError if how == "shifted" else ReplayError
            with pytest.raises(kind, match="out of range"):
                runtime.run(given)


@pytest.mark.parametrize(
    ("dtype", "rows", "wrong"), [(torch.int8, 300, 200), (torch.float16, 2052, 2051)]
)
def test_ids_that_a_cast_changes_are_not_the_input_s(
    captured: Capture, dtype: torch.dtype, rows: int, wrong: int
) -> None:
    """In a stack, the row before a table or behind it is one of another table."""

    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(rows, 4) for _ in range(3))

        def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
            ids = (a, b.to(dtype).long(), c)
            return torch.cat([t(i) for t, i in zip(self.tables, ids, strict=True)], 1)

    model, given = Cast(), {name: torch.tensor([3, 7, 5]) for name in "abc"}
    with Runtime.load(captured(model, given, rewrites=("stack_lookups",))) as runtime:
        assert runtime.manifest.unchecked == ("tables.1.weight",)
        got = runtime.run(given)["output"]
        np.testing.assert_array_equal(got, model(**given).detach().numpy())
        with pytest.raises(ReplayError, match="index out of range"):
            runtime.run(given | {"b": torch.tensor([3, wrong, 5])})


def test_ids_of_an_operator_with_several_results(captured: Capture) -> None:
    model = Tables(lambda x: [*x.topk(2, 1).indices.unbind(1), x.max(1).indices])
    given = {"x": torch.tensor([[7, 49, 3], [8, 1, 49], [4, 0, 0]])}
    with Runtime.load(captured(model, given, rewrites=("stack_lookups",))) as runtime:
        assert runtime.manifest.unchecked == ("tables.2.weight",)
        got = runtime.run(given)["output"]
        np.testing.assert_array_equal(got, model(given["x"]).detach().numpy())


class Best(nn.Module):
    """Two lookups of the best candidates, one by where they came."""

    def __init__(self, places: int, keep: int = 3) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(9, 1), nn.Embedding(20, 4)
        self.place = nn.Embedding(places, 4)
        self.keep = keep

    def forward(self, kind: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        score = self.first(kind)[:, 0].masked_fill(~mask, -torch.inf)
        order = torch.argsort(score, descending=True, stable=True)
        places = torch.arange(self.keep)
        left = order[places.clamp(max=mask.shape[0] - 1)]
        best = self.second(ids[left][:, 1]) + self.place(order[:1])
        real = (places < mask.sum())[:, None]
        return torch.where(mask, (best * real).sum(), 0.0)


def test_ids_of_rows_that_the_model_picks(captured: Capture) -> None:
    """Rows are picked among those that there are, and an id that is left is as it came."""
    model = Best(places=8)
    given = {
        "kind": torch.tensor([1, 8, 3, 2]),
        "ids": torch.tensor([[99, 3], [99, 19], [99, 0], [99, 5]]),
        "mask": torch.ones(4, dtype=torch.bool),
    }
    path = captured(model, given, row_mask="mask", buckets=[1, 4, 8])
    del given["mask"]
    with Runtime.load(path) as runtime, torch.inference_mode():
        manifest = runtime.manifest
        assert [(b.input, b.column, b.rows) for b in manifest.bounds] == [
            ("kind", None, 9),
            ("ids", 1, 20),
        ]
        assert manifest.unchecked == ()  # the largest bucket has as many places
        for rows in (1, 3, 4):
            request = {name: value[:rows] for name, value in given.items()}
            want = model(**request, mask=torch.ones(rows, dtype=torch.bool))
            np.testing.assert_allclose(runtime.run(request)["output"], want, rtol=1e-5)
        given["ids"][2, 1] = 20
        with pytest.raises(IdRangeError, match=r"^input 'ids' column 1, row 2: id 20 is out of ra"):
            runtime.run(given)


class Places(nn.Module):
    """Where the largest of some values lies: among those of a row, or of all rows."""

    def __init__(self, rows: int, dim: int | None) -> None:
        super().__init__()
        self.place = nn.Embedding(rows, 2)
        self.dim = dim

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        some = x.masked_fill(~mask[:, None], -torch.inf)
        if self.dim is None:
            order = some.flatten().argsort(descending=True, stable=True)
            places = order[:1].expand(x.shape[0])
        else:
            places = some.argsort(self.dim, descending=True)[:, 0]
        return self.place(places).sum(1).masked_fill(~mask, 0.0)


@pytest.mark.parametrize(
    ("model", "unchecked"),
    [
        (Places(12, None), ("place.weight",)),  # of 3 * B
        (Places(24, None), ()),
        (Places(3, 1), ()),
        (Places(2, 1), ("place.weight",)),
    ],
)
def test_places_are_counted_in_every_bucket(
    captured: Capture, model: Places, unchecked: tuple[str, ...]
) -> None:
    """Not those of the smallest alone, nor taken for rows where there are as many."""
    x = torch.zeros(4, 3)
    x[:, 0] = 1.0  # in reach of the smallest of these tables
    path = captured(model, {"x": x, "mask": torch.ones(4).bool()}, row_mask="mask", buckets=[3, 8])
    with Runtime.load(path) as runtime:
        assert runtime.manifest.unchecked == unchecked


def test_rows_that_other_rows_name(captured: Capture) -> None:
    """A larger bucket has more of them, so the smallest bounds none."""

    class Partners(nn.Module):
        def forward(self, x: Tensor, partner: Tensor, mask: Tensor) -> Tensor:
            return x + x[partner]

    given = {"x": torch.randn(5), "partner": torch.zeros(5).long(), "mask": torch.ones(5).bool()}
    with Runtime.load(captured(Partners(), given, row_mask="mask", buckets=[1, 8])) as runtime:
        assert runtime.manifest.bounds == ()
        assert runtime.manifest.unchecked == ("input_x",)
        x = np.array([1, 2, 4], np.float32)
        got = runtime.run({"x": x, "partner": np.array([2, 0, 1])})["output"]
        np.testing.assert_array_equal(got, [5, 3, 6])


def test_columns_of_rows_that_have_dimensions_of_their_own(captured: Capture) -> None:
    """`[1, 1, 2]` of ids `[B, 2]`: dimension 1 is none of the columns. If it were taken for one,
    the others would pass for checked, and in a stack of tables they read another."""

    class Picked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small, self.large = nn.Embedding(5, 4), nn.Embedding(50, 4)

        def forward(self, ids: Tensor, kind: Tensor, at: Tensor, mask: Tensor) -> Tensor:
            order = torch.argsort(at.masked_fill(~mask, torch.inf), stable=True)
            best = ids[order[:1, None]][:, 0]
            others = self.large(kind).masked_fill(~mask[:, None], 0.0)
            return torch.where(mask, self.small(best).sum() + others.sum(), 0.0)

    given = {
        "ids": torch.tensor([[1, 4], [2, 3], [0, 4], [4, 1]]),
        "kind": torch.tensor([9, 40, 49, 0]),
        "at": torch.tensor([0.1, 0.2, 0.3, 0.4]),
        "mask": torch.ones(4, dtype=torch.bool),
    }
    path = captured(Picked(), given, row_mask="mask", rewrites=("stack_lookups",))
    del given["mask"]
    with Runtime.load(path) as runtime:
        assert runtime.manifest.unchecked == ()
        for row, column in ((0, 1), (2, 0)):
            wrong = given["ids"].clone()
            wrong[row, column] = 40
            message = rf"^input 'ids' column {column}, row {row}: id 40 is .* table 'small.weight'"
            with pytest.raises(IdRangeError, match=message):
                runtime.run({**given, "ids": wrong})


def test_ids_that_a_small_type_does_not_hold_are_not_stacked(captured: Capture) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(200, 4) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            wrapped = (x[:, 0] % 200).to(torch.int8).long()  # 199 becomes -57
            return self.tables[0](x[:, 1]) + self.tables[1](wrapped)

    given = {"x": torch.tensor([[1, 199], [127, 4], [3, 5]])}
    with Runtime.load(captured(Wrapped(), given, rewrites=("stack_lookups",))) as runtime:
        given["x"][1, 0] = 199
        with pytest.raises(ReplayError, match="index out of range"):
            runtime.run(given)


def test_a_model_that_cannot_take_sampled_ids_is_told_so(captured: Capture) -> None:
    """The ids of one table bound a column that the model makes ids of a smaller one of."""
    model = Tables(lambda x: [x.max(1).values, x[:, 0], x[:, 1]])
    with pytest.raises(
        CaptureError,
        match=r"^the model itself fails on a request of 5 rows made of its example inputs: IndexErr"
        r"or: index out of range in self\. It has to take any number of rows, .* or clamp ids that",
    ):
        captured(model, {"x": torch.randint(0, 10, (6, 3))})


def test_floats_that_capture_makes_up_stay_within_their_columns() -> None:
    """As exact as they are: whole numbers may be ids, beyond what float32 holds too."""
    inputs = (InputSpec("x", "float64", (4,)), InputSpec("y", "float32", (2,)))
    x = torch.tensor(
        [[2.0**40, 0.25, torch.inf, torch.nan], [2.0**40 + 1, 0.75, 1.5, 0.5]], dtype=torch.float64
    )
    known = {"x": x, "y": torch.tensor([[0.3, 0.1], [0.3, 0.9]])}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = sample_request(inputs, (), known, 50, seed=1)
        sample_request(inputs, (), {k: v[:1] for k, v in known.items()}, 3, seed=1)
    values = made["x"].numpy()
    assert set(values[:, 0]) == {2.0**40, 2.0**40 + 1}
    assert set(values[:, 2]) == {np.inf, 1.5}
    assert set(values[~np.isnan(values[:, 3]), 3]) == {0.5}
    assert set(made["y"][:, 0].tolist()) == {float(np.float32(0.3))}
    for some, low, high in ((values[:, 1], 0.25, 0.75), (made["y"].numpy()[:, 1], 0.1, 0.9)):
        assert np.float32(low) <= some.min()
        assert some.max() <= np.float32(high)
        assert len(set(some.tolist())) > 10


def test_ids_made_of_floats_stay_in_what_the_example_has(captured: Capture) -> None:
    """Requests that capture makes up to prove buckets are valid for the model."""

    class Quantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(100, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.table((x * 100).long()).sum(1)

    x = torch.rand(8, 3, generator=torch.Generator().manual_seed(2))
    with Runtime.load(captured(Quantised(), {"x": x}, buckets=[1, 64])) as runtime:
        assert runtime.run({"x": x})["output"].shape == (8, 4)


def test_ids_that_are_true_or_false(captured: Capture) -> None:
    class Flags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flag, self.flags = nn.Embedding(2, 4), nn.Embedding(2, 4)

        def forward(self, flag: Tensor, flags: Tensor) -> Tensor:
            return self.flag(flag.long()) + self.flags(flags.long()).sum(1)

    model = Flags()
    given = {"flag": torch.tensor([True, False, True]), "flags": torch.rand(3, 4) > 0.5}
    with Runtime.load(captured(model, given)) as runtime, torch.inference_mode():
        assert runtime.manifest.unchecked == ()
        np.testing.assert_allclose(runtime.run(given)["output"], model(**given), rtol=1e-5)


def test_ids_that_count_from_one(captured: Capture) -> None:
    """Zeros, which staging memory begins with, are none of them."""
    model = Tables(lambda x: [x[:, 0] - 1, x[:, 1] - 1, x[:, 2]])
    given = {"x": torch.tensor([[1, 50, 3], [10, 2, 49], [5, 1, 0]])}
    with Runtime.load(captured(model, given)) as runtime, torch.inference_mode():
        np.testing.assert_array_equal(runtime.run(given)["output"], model(given["x"]).numpy())
        assert runtime.manifest.unchecked == ()
        for column, wrong in ((0, 0), (1, 51)):
            bad = {"x": given["x"].clone()}
            bad["x"][1, column] = wrong
            message = rf"^input 'x' column {column}, row 1: id {wrong} is out of .* are 1 to \d+$"
            with pytest.raises(IdRangeError, match=message):
                runtime.run(bad)


class Last(nn.Module):
    """The last item of each list, found as sequence models do."""

    def __init__(self, find: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 3)
        self.find = find

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        return self.find(self.table(ids), lengths)


FOUND: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gather": lambda x, n: x.gather(1, (n - 1).view(-1, 1, 1).expand(-1, 1, 3)).squeeze(1),
    "sum": lambda x, n: x.gather(1, n.add(-1)[:, None, None].repeat(1, 1, 3)).squeeze(1),
    "take_along_dim": lambda x, n: x.take_along_dim((n - 1)[:, None, None], 1).squeeze(1),
    "the last two": lambda x, n: torch.cat(
        [x.gather(1, (n - k)[:, None, None].expand(-1, 1, 3)).squeeze(1) for k in (1, 2)], 1
    ),
}


@pytest.mark.parametrize("how", FOUND)
def test_places_that_lengths_name_are_checked(how: str, captured: Capture) -> None:
    model = Last(FOUND[how]).eval()
    given = {"ids": torch.arange(20).view(4, 5) % 9, "lengths": torch.tensor([2, 5, 3, 2])}
    least = 2 if "two" in how else 1
    with Runtime.load(captured(model, given)) as runtime, torch.inference_mode():
        np.testing.assert_array_equal(runtime.run(given)["output"], model(**given).numpy())
        for wrong in (least - 1, 6, -(2**40)):
            bad = {**given, "lengths": torch.tensor([2, 5, wrong, 2])}
            message = rf"^input 'lengths', row 2: id {wrong} is out of range; .* are {least} to 5$"
            with pytest.raises(IdRangeError, match=message):
                runtime.run(bad)


class FromTheEnd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.rand(9, 3))

    def forward(self, ids: Tensor) -> Tensor:
        return self.rows[ids - 1]


def test_rows_may_be_counted_from_the_end(captured: Capture) -> None:
    """`rows[ids - 1]` reads the last one for 0, which models use for padding."""
    model, given = FromTheEnd().eval(), {"ids": torch.tensor([0, 4, 9])}
    with Runtime.load(captured(model, given)) as runtime, torch.inference_mode():
        np.testing.assert_array_equal(runtime.run(given)["output"], model(**given).numpy())
        assert runtime.manifest.unchecked == ("rows",)


class Fields(nn.Module):
    """Fields that share one table, each from a row of its own on: pytorch-fm and many after it."""

    def __init__(self, shift: Callable[[Tensor], Tensor | int], sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.shift = shift
        self.table = nn.Embedding(sum(sizes), 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.table(x + self.shift(x)).sum(1)
        return found


SIZES = (4, 9, 2)
STARTS = np.array((0, *np.cumsum(SIZES)[:-1]))
SHIFTS: dict[str, Callable[[Tensor], Tensor | int]] = {
    "a row": lambda x: x.new_tensor(STARTS).unsqueeze(0),
    "a row of int32": lambda x: torch.tensor(STARTS, dtype=torch.int32),
    "one number": lambda x: 1,
}


@pytest.mark.parametrize("name", SHIFTS)
def test_fields_of_one_table_are_bounded_each(name: str, captured: Capture) -> None:
    model = Fields(SHIFTS[name], SIZES).eval()
    x = torch.tensor([[0, 0, 0], [3, 8, 1], [1, 5, 0]])
    starts = STARTS if name != "one number" else np.ones(3, int)
    with Runtime.load(captured(model, {"x": x}, buckets=[1, 4])) as runtime, torch.no_grad():
        assert runtime.manifest.unchecked == ()
        bounds = {b.column: b.rows for b in runtime.manifest.bounds}
        assert bounds == {at: 15 - int(start) for at, start in enumerate(starts)}
        np.testing.assert_allclose(runtime.run({"x": x})["output"], model(x).numpy(), rtol=1e-6)
        for (column, rows), start in zip(bounds.items(), starts, strict=True):
            given = x.clone()
            given[2, column] = rows - 1
            want = model(given).numpy()
            np.testing.assert_allclose(runtime.run({"x": given})["output"], want, rtol=1e-6)
            table = re.escape(f"table.weight[{start}:]" if start else "table.weight")
            for wrong in (rows, -1):
                given[2, column] = wrong
                message = (
                    rf"input 'x' column {column}, row 2: id {wrong} is out of range; table "
                    rf"'{table}' has {rows} rows"
                )
                with pytest.raises(IdRangeError, match=message):
                    runtime.run({"x": given})


def test_a_column_that_is_read_twice_is_bounded_by_both(captured: Capture) -> None:
    model = Fields(lambda x: x.new_tensor([5, 0, 0]), SIZES).eval()
    read = model.forward
    model.forward = lambda x: read(torch.cat([x[:, 1:2], x[:, 1:]], 1))  # type: ignore[method-assign]
    x = torch.tensor([[0, 1, 0], [3, 8, 1], [1, 5, 0]])
    with Runtime.load(captured(model, {"x": x})) as runtime, torch.no_grad():
        bounds = {(b.column, b.rows) for b in runtime.manifest.bounds}
        assert bounds == {(1, 10), (2, 15)}
        np.testing.assert_allclose(runtime.run({"x": x})["output"], model(x).numpy(), rtol=1e-6)


def test_fields_may_be_read_from_before_a_table(captured: Capture) -> None:
    model = Fields(lambda x: x.new_tensor([0, -1, 2]), SIZES).eval()
    x = torch.tensor([[0, 1, 0], [3, 8, 1], [1, 5, 0]])
    with Runtime.load(captured(model, {"x": x})) as runtime, torch.no_grad():
        assert runtime.manifest.unchecked == ()
        bounds = [(b.column, b.least, b.rows) for b in runtime.manifest.bounds]
        assert bounds == [(0, 0, 15), (1, 1, 16), (2, 0, 13)]
        np.testing.assert_allclose(runtime.run({"x": x})["output"], model(x).numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    "shift",
    [lambda x: x.shape[0] - 1, lambda x: torch.arange(x.shape[0])[:, None]],
    ids=["as many as rows", "rows of a request"],
)
def test_what_another_bucket_adds_bounds_nothing(
    shift: Callable[[Tensor], Tensor | int],
) -> None:
    model = ingest(Fields(shift, SIZES).eval(), {"x": torch.zeros(3, 3, dtype=torch.int64)})
    bounds, unchecked = id_bounds(specialise(model, 2), specialise(model, 4))
    assert (bounds, unchecked) == ([], ["table.weight"])


class Events(nn.Module):
    """Lists of items with an id, a category and a shop, `[B, L, 3]`, each with its table."""

    def __init__(self, take: Callable[[Tensor], list[Tensor]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tables = nn.ModuleList(nn.Embedding(rows, 4) for rows in ROWS)
        self.take = take

    def forward(self, events: Tensor) -> Tensor:
        taken = self.take(events)
        return sum((t(i).sum(1) for t, i in zip(self.tables, taken, strict=True)), torch.zeros(()))


LISTS: dict[str, Callable[[Tensor], list[Tensor]]] = {
    "unbind": lambda x: list(x.unbind(-1)),
    "columns": lambda x: [x[:, :, 0], x[..., 1], x.select(2, -1)],
    "fields first": lambda x: list(x.transpose(1, 2).unbind(1)),
    "flat": lambda x: list(x.flatten(0, 1).t().unflatten(1, (-1, 4))),
}


@pytest.mark.parametrize("how", LISTS)
@pytest.mark.parametrize("rewrites", [(), ("stack_lookups", "narrow_ids")])
def test_items_of_several_ids_are_checked(
    how: str, rewrites: tuple[str, ...], captured: Capture
) -> None:
    model = Events(LISTS[how]).eval()
    given = torch.stack([torch.randint(0, rows, (5, 4)) for rows in ROWS], 2)
    with Runtime.load(captured(model, {"events": given}, rewrites=rewrites)) as runtime:
        assert runtime.manifest.unchecked == ()
        with torch.no_grad():
            want = model(given).numpy()
        np.testing.assert_allclose(runtime.run({"events": given})["output"], want, 1e-5, 1e-6)
        for column, rows in enumerate(ROWS):
            for wrong in (rows, -1, 2**40):
                bad = given.clone()
                bad[3, 2, column] = wrong
                message = (
                    rf"^input 'events' column {column} of dimension 2, row 3, position 2: id "
                    rf"{wrong} is out of range; table 'tables.{column}.weight' has {rows} rows, so"
                )
                with pytest.raises(IdRangeError, match=message):
                    runtime.run({"events": bad})
    with Runtime.load(captured(model, {"events": given}), check="clamp") as runtime:
        bad[1, 1, 0] = 10**6
        allowed = torch.stack([bad[..., i].clamp(0, rows - 1) for i, rows in enumerate(ROWS)], 2)
        with torch.no_grad():
            want = model(allowed).numpy()
        np.testing.assert_allclose(runtime.run({"events": bad})["output"], want, 1e-5, 1e-6)
        assert runtime.stats()["clamped_ids"] == 2


def test_parts_of_lists_are_checked_if_they_are_whole(captured: Capture) -> None:
    """Every list of one field is; one place of one field is no column of either dimension."""
    model = Events(lambda x: [x[:, 1], x[:, 2, :2], x[:, 0]]).eval()
    given = torch.zeros(5, 3, 4, dtype=torch.int64)
    with Runtime.load(captured(model, {"events": given})) as runtime:
        found = {(b.axis, b.column, b.table) for b in runtime.manifest.bounds}
        assert found == {(1, 1, "tables.0.weight"), (1, 0, "tables.2.weight")}
        assert runtime.manifest.unchecked == ("tables.1.weight",)


def test_numbers_that_differ_within_a_column_bound_nothing(captured: Capture) -> None:
    class Shared(nn.Module):
        def __init__(self, shifts: list[Any]) -> None:
            super().__init__()
            self.table = nn.Embedding(20, 4)
            self.shifts = shifts

        def forward(self, x: Tensor) -> Tensor:
            return self.table(x + torch.tensor(self.shifts)).sum((1, 2))

    x = torch.zeros(5, 2, 3, dtype=torch.int64)
    for shifts, bounds in (
        ([0, 4, 9], [(2, 0, 20), (2, 1, 16), (2, 2, 11)]),
        ([[3], [5]], [(1, 0, 17), (1, 1, 15)]),
        ([[0, 1, 2], [3, 4, 5]], []),
    ):
        with Runtime.load(captured(Shared(shifts), {"x": x})) as runtime:
            found = [(b.axis, b.column, b.rows) for b in runtime.manifest.bounds]
            assert found == bounds
            assert runtime.manifest.unchecked == (() if bounds else ("table.weight",))
