"""The library's way of filling mixed requests puts the same bytes into staging as numpy's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from everything import CAPACITY, SIZE, USERS, Arrays, captured, request
from filling import at_odd_bytes, load_sharing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recreplay.capture import Jagged, capture
from recreplay.runtime import Runtime
from recreplay.runtime.artifact import FILLER, open_artifact
from recreplay.runtime.errors import InputError
from recreplay.runtime.fill import Check
from recreplay.runtime.mixed import MixedFiller, make_checker, make_fillers
from recreplay.runtime.native_fill import FillLibrary, load_fill_library
from recreplay.runtime.spec import total_bytes


@pytest.fixture(scope="module", params=["int32", "int64"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Int64 ids are staged as int32 or as they come."""
    return captured(tmp_path_factory.mktemp("mixed") / "m.rr", request.param)


@dataclass
class Both:
    """The largest bucket, filled by the library and by numpy."""

    by: dict[str, tuple[MixedFiller, Any]]
    order: tuple[str, ...]

    def fill(self, given: Arrays) -> bool:
        """Whether the library took it; if so, the bytes are the same."""
        values = tuple(given[name] for name in self.order)
        n = len(given["offsets"]) - 1
        filler, mine = self.by["library"]
        mine[:] = 0xEE
        taken = filler.prepare(n).as_it_came(values)
        if taken:
            other, numpys = self.by["numpy"]
            numpys[:] = 0xEE
            other.prepare(n)(values)
            np.testing.assert_array_equal(mine, numpys)
        return taken


def both(path: Path, library: FillLibrary, check: Check, size: int = SIZE) -> Both:
    manifest = open_artifact(path).manifest
    by = {}
    for name, used in (("library", library), ("numpy", None)):
        memory = np.zeros(max(total_bytes(b.inputs) for b in manifest.buckets), np.uint8)
        filler = make_fillers(manifest, memory, check, used)[size]
        assert isinstance(filler, MixedFiller)
        by[name] = filler, memory
    checker = make_checker(manifest, check)
    return Both(by, tuple(spec.name for spec in checker._specs))


@pytest.fixture(scope="module", params=["alone", "helpers"])
def library(
    artifact: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FillLibrary]:
    """Of one thread or of several."""
    found = load_fill_library(artifact / FILLER)
    if found is None:
        pytest.skip("no C compiler")
    if request.param == "helpers":
        found.close()
        found = load_sharing(tmp_path_factory.mktemp("library"))
        assert found is not None
    yield found
    found.close()


few = st.integers(0, 5)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_right_requests(artifact: Path, library: FillLibrary, data: st.DataObject) -> None:
    """All that fit are taken, and none that does not: there, numpy's way says so."""
    n, m = data.draw(st.integers(1, SIZE)), data.draw(st.integers(1, USERS))
    clicks, tags = (data.draw(st.lists(few, min_size=n, max_size=n)) for _ in range(2))
    seen = data.draw(st.lists(few, min_size=m, max_size=m))
    wide, seed = data.draw(st.booleans()), data.draw(st.integers(0, 99))
    given = request(n, m, (clicks, tags, seen), wide, seed)
    fits = max(sum(clicks), sum(tags)) <= CAPACITY * SIZE and sum(seen) <= CAPACITY * USERS
    pair = both(artifact, library, "error")
    assert pair.fill(given) == fits
    native = pair.by["library"][0].native
    assert native is not None
    needed = native.needed(tuple(given[name] for name in pair.order))
    most = -(-max(sum(clicks), sum(tags)) // CAPACITY)
    assert needed == (max(n, most) if sum(seen) <= CAPACITY * USERS else 0)
    assert pair.fill({name: at_odd_bytes(array) for name, array in given.items()}) == fits
    if fits and data.draw(st.booleans()):
        given |= {k: torch.from_numpy(given[k]) for k in ("item", "clicks", "offsets", "starts")}
        assert pair.fill(given)


def put(name: str, at: Any, value: int) -> Callable[[Arrays], Arrays]:
    def change(given: Arrays) -> Arrays:
        changed = given[name].copy()
        changed[at] = value
        return given | {name: changed}

    return change


def instead(name: str, make: Callable[[Any], Any]) -> Callable[[Arrays], Arrays]:
    return lambda given: given | {name: make(given[name])}


WRONG: dict[str, Callable[[Arrays], Arrays]] = {
    "an id of a row": put("item", (1, 2), 30),
    "a negative id of a row": put("item", (1, 2), -1),
    "an id of a user": put("user", 1, 30),
    "an id that would become another": put("clicks", 2, 2**32 + 5),
    "an id of values": put("tags", 0, 30),
    "an id of a user's values": put("seen", 0, -4),
    "a user who is not there": put("user_index", 3, 2),
    "a negative user": put("user_index", 3, -1),
    "offsets that fall": put("offsets", 2, 1),
    "offsets that begin late": put("offsets", 0, 1),
    "offsets that end early": put("offsets", -1, 6),
    "offsets beyond": put("offsets", 2, 99),
    "starts that begin late": put("starts", 0, 1),
    "starts beyond": put("starts", 1, 99),
    "a negative length": put("lengths", 0, -1),
    "a length too large": put("lengths", 0, 2**62),
    "a length too small": put("lengths", 1, 0),
    "fewer rows": instead("dense", lambda a: a[:-1]),
    "fewer offsets": instead("offsets", lambda a: a[:-1]),
    "fewer lengths": instead("lengths", lambda a: a[:-1]),
    "fewer starts": instead("starts", lambda a: a[:-1]),
    "fewer weights": instead("weights", lambda a: a[:-1]),
    "more values": instead("tags", lambda a: np.append(a, a[:1])),
    "no rows": instead("item", lambda a: a[:0]),
    "other columns": instead("item", lambda a: a[:, :2]),
    "values in rows": instead("clicks", lambda a: a[:, None]),
    "one number": instead("lengths", lambda a: a[0]),
    "another dtype": instead("weights", lambda a: a.astype(np.float64)),
    "a list": instead("clicks", lambda a: a.tolist()),
    "nothing": instead("lengths", lambda a: None),
}
GIVEN = (4, 2, ([2, 0, 3, 2], [1, 2, 0, 1], [2, 3]), True, 5)


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("check", ["error", "clamp"])
def test_wrong_requests_are_left_to_be_told_so(
    artifact: Path, library: FillLibrary, name: str, check: Check
) -> None:
    pair = both(artifact, library, check)
    good = request(*GIVEN)
    assert pair.fill(good)
    assert not pair.fill(WRONG[name](good))
    assert pair.fill(good)


@pytest.mark.parametrize(
    "change",
    [
        instead("clicks", lambda a: np.repeat(a, 2)[::2]),
        instead("offsets", lambda a: np.repeat(a, 2)[::2]),
        instead("weights", lambda a: a[::-1]),
        instead("lengths", lambda a: a.astype(np.int16)),
    ],
)
def test_arrays_that_lie_otherwise_go_by_numpy(
    artifact: Path, library: FillLibrary, change: Callable[[Arrays], Arrays]
) -> None:
    pair = both(artifact, library, "error")
    given = change(request(*GIVEN))
    assert not pair.fill(given)
    values = tuple(given[name] for name in pair.order)
    filler, memory = pair.by["library"]
    other, numpys = pair.by["numpy"]
    memory[:] = numpys[:] = 0xEE
    assert filler.prepare(4)(values) == other.prepare(4)(values) == 0
    np.testing.assert_array_equal(memory, numpys)


def test_rows_may_lie_apart(artifact: Path, library: FillLibrary) -> None:
    pair = both(artifact, library, "error")
    good = request(*GIVEN)
    for change in (
        instead("item", lambda a: np.repeat(a, 2, 0)[::2]),
        instead("user_index", lambda a: np.repeat(a, 2)[::2]),
        instead("dense", lambda a: np.concatenate([a, a], 1)[:, 2:]),
    ):
        assert pair.fill(change(good))


def test_ids_are_trusted_where_the_caller_says_so_and_offsets_are_not(
    artifact: Path, library: FillLibrary
) -> None:
    pair = both(artifact, library, "off")
    good = request(*GIVEN)
    for name in ("an id of a row", "an id of values", "a user who is not there"):
        assert pair.fill(WRONG[name](good))
    for name in ("offsets that fall", "starts beyond", "a length too large"):
        assert not pair.fill(WRONG[name](good))
        values = tuple(WRONG[name](good)[k] for k in pair.order)
        with pytest.raises(InputError, match=r"^input '(offsets|starts|lengths)'"):
            pair.by["library"][0].prepare(4)(values)


def test_many_values_are_copied_while_other_threads_run(
    artifact: Path, library: FillLibrary
) -> None:
    """The lock is let go above 1 MB; what is filled is the same."""
    manifest = open_artifact(artifact).manifest
    assert total_bytes(manifest.buckets[-1].inputs) < 1 << 20  # so not here
    model = nn.EmbeddingBag(50, 4, mode="sum", include_last_offset=True).eval()
    values, offsets = torch.randint(0, 50, (4096,)), torch.arange(0, 4097, 32)
    out = artifact.parent / "long.rr"
    capture(
        model,
        {"input": values, "offsets": offsets},
        out=out,
        buckets=[2048],
        compiler="eager",
        jagged=[Jagged("input", offsets="offsets", capacity=128)],
        overwrite=True,
    )
    mine = open_artifact(out).manifest
    memory = [np.zeros(total_bytes(mine.buckets[0].inputs), np.uint8) for _ in range(2)]
    draw = np.random.default_rng(2)
    lengths = draw.integers(0, 200, 2000)
    assert lengths.sum() * 8 > 1 << 20
    given = (np.append(0, lengths.cumsum()), draw.integers(0, 50, lengths.sum()))
    filled = make_fillers(mine, memory[0], "error", library)[2048].prepare(2000)
    by_numpy = make_fillers(mine, memory[1], "error", None)[2048].prepare(2000)
    assert filled.as_it_came(given)  # type: ignore[union-attr]
    by_numpy(given)
    np.testing.assert_array_equal(*memory)


class CountedFromOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(8, 4, mode="sum", include_last_offset=True)

    def forward(self, values: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.bag(values.long() - 1, offsets)
        return found


@pytest.mark.parametrize("check", ["error", "clamp", "off"])
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_room_behind_values_holds_ids_that_there_are(
    dtype: torch.dtype, check: Check, tmp_path: Path, library: FillLibrary
) -> None:
    """A model looks up what belongs to no row, too: 0, from which it takes 1, is no id."""
    model = CountedFromOne().eval()
    given = {"values": torch.arange(1, 9).to(dtype), "offsets": torch.tensor([0, 3, 3, 8])}
    out = tmp_path / "m.rr"
    jagged = [Jagged("values", offsets="offsets", capacity=4)]
    capture(model, given, out=out, buckets=[4], compiler="eager", jagged=jagged)
    pair = both(out, library, check, 4)
    for count in (8, 3, 0):
        some = {"values": given["values"][:count], "offsets": given["offsets"].clamp(max=count)}
        assert pair.fill({name: tensor.numpy() for name, tensor in some.items()})
        with Runtime.load(out, check=check) as runtime, torch.no_grad():
            expected = model(**some).numpy()
            np.testing.assert_allclose(runtime.run(some)["output"], expected, 1e-5, 1e-6)
