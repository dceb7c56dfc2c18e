"""New weights in place: seen by the next replay, never half, never a shape that does not fit."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recreplay.capture import capture
from recreplay.runtime import Runtime
from recreplay.runtime.errors import RefreshError
from recreplay.runtime.serving import Serving


def agree(got: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-5)


def copy_of(shop: Any) -> Any:
    other = type(shop)().eval()
    other.load_state_dict(shop.state_dict())
    return other


@pytest.mark.parametrize("table", ["shelf", "aisle", "tag", "brand"])
def test_rows_are_seen_by_the_next_replay(shop_path: Path, shop: Any, table: str) -> None:
    model = copy_of(shop)
    with Runtime.load(shop_path, lanes=2) as runtime:
        weight = getattr(model, table).weight
        ids = np.array([0, len(weight) - 1, 2])
        rows = np.random.default_rng(1).standard_normal((3, weight.shape[1])).astype("f4")
        runtime.update_rows(f"{table}.weight", ids, rows)
        with torch.no_grad():
            weight[ids] = torch.from_numpy(rows)
        for rows_ in (1, 8, 20):
            request = shop.request(rows_, seed=rows_)
            for future in [runtime.submit(request) for _ in range(4)]:
                agree(future.result(timeout=30), model.answer(request))
        assert runtime.stats()["refreshes"] == 1


def test_all_weights_at_once(shop_path: Path, shop: Any) -> None:
    torch.manual_seed(31)
    other = type(shop)().eval()
    with Runtime.load(shop_path) as runtime:
        assert set(runtime.weights()) == set(other.state_dict())
        assert runtime.weights()["shelf.weight"] == ("float32", (50, 8))
        runtime.update_weights(other.state_dict())
        request = shop.request(20)
        agree(runtime.run(request), other.answer(request))


def refused(runtime: Runtime, message: str, *arguments: Any) -> None:
    with pytest.raises(RefreshError, match=message):
        runtime.update_rows(*arguments)


def test_what_does_not_fit_is_refused_and_nothing_written(shop_path: Path, shop: Any) -> None:
    rows = np.ones((2, 8), "f4")
    with Runtime.load(shop_path) as runtime:
        refused(runtime, r"^the captured model has no weight 'shelf'; it has", "shelf", [0], rows)
        table = "shelf.weight"
        refused(
            runtime, r"^id 50 is out of range; table 'shelf.weight' has 50", table, [0, 50], rows
        )
        refused(runtime, r"^id -1 is out of range", table, [0, -1], rows)
        refused(runtime, r"repeat, so that it is open which row wins$", table, [3, 3], rows)
        refused(runtime, r"got float32\[2, 8\]; expected float32\[1, 8\]", table, [3], rows)
        refused(runtime, r"got float64\[2, 8\]; expected", table, [3, 4], rows.astype("f8"))
        refused(runtime, r"^ids of table .* are float32\[2\]; expected", table, rows[:, 0], rows)
        with pytest.raises(RefreshError, match=r"^weight 'top.bias': got float32\[6\]; expected"):
            runtime.update_weights({"top.weight": torch.zeros(5, 29), "top.bias": torch.zeros(6)})
        agree(runtime.run(shop.request(8)), shop.answer(shop.request(8)))
        assert runtime.stats()["refreshes"] == 0


ARGUMENTS: dict[str, dict[str, Any]] = {
    "din": {"length": 6},
    "dlrm": {"tables": 4},
    "streamrec": {"features": 5, "lookups": 4},
    "mt_wide_deep": {"tasks": 2},
}


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_whatever_rewrites_made_of_weights_is_refreshed(name: str, tmp_path: Path) -> None:
    """Weights that were laid into one storage, of tables and of branches alike."""
    from recreplay.models import MODELS

    one, other = (
        MODELS[name].factory(rows_scale=1e-4, seed=seed, **ARGUMENTS[name]) for seed in (1, 2)
    )
    out = tmp_path / "m.rr"
    capture(one, out=out, buckets=[2, 8], compiler="eager")
    request = other.example_inputs(5, seed=3)
    with torch.inference_mode():
        answer = other(**other.arguments(request))
    with Runtime.load(out) as runtime:
        known = runtime.weights()
        new = {k: v for k, v in other.state_dict().items() if k in known}
        assert set(known) == set(new) == {k for k, _ in other.named_parameters()}
        runtime.update_weights(new)
        got = runtime.run({k: v.numpy() for k, v in request.items()})
    expected = list(answer.values()) if isinstance(answer, dict) else [answer]
    for value, output in zip(expected, got.values(), strict=True):
        np.testing.assert_allclose(output, value.numpy(), rtol=1e-4, atol=1e-5)


class Twin(nn.Module):
    """Two weights that are always equal: a replay that sees one of them new and one old shows."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Embedding.from_pretrained(torch.zeros(64, 4))
        self.b = nn.Embedding.from_pretrained(torch.zeros(64, 4))

    def forward(self, ids: Tensor) -> Tensor:
        return self.a(ids).sum(1) - self.b(ids).sum(1) + self.a(ids)[:, 0] * 0


def test_no_replay_sees_half_of_a_refresh(tmp_path: Path) -> None:
    out = tmp_path / "twin.rr"
    capture(Twin().eval(), {"ids": torch.arange(4)}, out=out, buckets=[4, 64], compiler="eager")
    torn, stop = [], threading.Event()
    with Runtime.load(out, serving=Serving(lanes=2, max_delay_us=0)) as runtime:

        def read(direct: bool) -> None:
            ids = np.arange(64)
            while not stop.is_set():
                request = {"ids": ids}
                got = runtime.run(request) if direct else runtime.submit(request).result()
                if got["output"].any():
                    torn.append(got)

        threads = [threading.Thread(target=read, args=(i % 2 == 0,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for turn in range(1, 101):
            value = torch.full((64, 4), float(turn))
            runtime.update_weights({"a.weight": value, "b.weight": value})
        stop.set()
        for thread in threads:
            thread.join()
    assert torn == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(5).to_sparse(), r"^weight 'top.bias': got a tensor of kind torch.sparse_coo; "),
        (torch.ones(5, device="meta"), r"^weight 'top.bias': got a tensor of kind meta; expected"),
        (
            np.ma.array(np.ones(5, np.float32), mask=[0, 0, 1, 0, 0]),
            r"^weight 'top.bias': some of its values are masked; expected an array",
        ),
    ],
)
def test_tensors_without_plain_numbers_write_nothing(
    shop_path: Path, shop: Any, value: Any, message: str
) -> None:
    other = torch.ones_like(shop.top.weight)
    with Runtime.load(shop_path) as runtime:
        with pytest.raises(RefreshError, match=message):
            runtime.update_weights({"top.weight": other, "top.bias": value})
        agree(runtime.run(shop.request(3)), shop.answer(shop.request(3)))
        assert runtime.stats()["refreshes"] == 0


def test_arrays_are_written_however_they_lie_in_memory(shop_path: Path, shop: Any) -> None:
    model = copy_of(shop)
    ids = np.array([5, 0, 8])
    rows = np.random.default_rng(4).standard_normal((3, 4)).astype("f4")
    with torch.no_grad():
        model.tag.weight[ids] = torch.from_numpy(rows)
    with Runtime.load(shop_path) as runtime:
        for ids_, rows_ in (
            (ids[::-1], rows[::-1]),
            (ids.astype(">i8"), rows.astype(">f4")),
            (ids.astype("u1"), np.asfortranarray(rows)),
            (np.ma.array(ids), rows.view(np.matrix)),
        ):
            runtime.update_rows("tag.weight", ids, np.zeros((3, 4), "f4"))
            runtime.update_rows("tag.weight", ids_, rows_)
            agree(runtime.run(shop.request(20)), model.answer(shop.request(20)))


class Tied(nn.Module):
    """The history is looked up in the table of the item, and two layers have one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.item, self.past = nn.Embedding(50, 8), nn.Embedding(50, 8)
        self.past.weight = self.item.weight
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.top = nn.Linear(8, 1)

    def forward(self, item: Tensor, past: Tensor) -> Tensor:
        x: Tensor = self.top(self.second(self.first(self.item(item) * self.past(past).mean(1))))
        return x


def test_weights_of_several_names(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model, other = Tied().eval(), Tied().eval()
    request = {"item": torch.randint(50, (4,)), "past": torch.randint(50, (4, 3))}
    capture(model, request, out=tmp_path / "t.rr", buckets=[4], compiler="eager")

    def agree_with(expected: Tied) -> None:
        agree(runtime.run(request), {"output": expected(**request).detach().numpy()})

    with Runtime.load(tmp_path / "t.rr") as runtime:
        assert set(runtime.weights()) == set(model.state_dict())
        runtime.update_weights(other.state_dict())
        agree_with(other)
        for turn, name in enumerate(("item.weight", "past.weight")):
            runtime.update_weights({name: model.item.weight})
            rows = torch.full((2, 8), float(turn + 2))
            runtime.update_rows(name, [7, 9], rows)
            with torch.no_grad():
                other.item.weight.copy_(model.item.weight)
                other.item.weight[[7, 9]] = rows
            agree_with(other)
        copied = {k: v.clone() for k, v in other.state_dict().items()}
        copied["item.weight"][3, 3] = copied["past.weight"][3, 3] = torch.nan
        runtime.update_weights(copied)
        copied["past.weight"][0, 0] += 1
        one = r"^weights 'item.weight' and 'past.weight' are one in the captured model, and were"
        with pytest.raises(RefreshError, match=one):
            runtime.update_weights(copied)
    assert runtime.weights() == {}  # it is closed


def test_the_state_of_a_model_that_is_not_read_whole(tmp_path: Path) -> None:
    """A normalisation counts batches, and a tower of training alone is in the state too."""

    def model(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        made = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        made.add_module("auxiliary", nn.Identity())
        made.auxiliary.register_parameter("weight", nn.Parameter(torch.rand(2)))
        made(torch.rand(32, 3))  # so that it has statistics
        return made.eval()

    request = {"input": torch.rand(4, 3)}
    capture(model(1), request, out=tmp_path / "n.rr", buckets=[4], compiler="eager")
    other = model(2)
    with Runtime.load(tmp_path / "n.rr") as runtime:
        runtime.update_weights(other.state_dict())
        agree(runtime.run(request), {"output": other(request["input"]).detach().numpy()})
        left = set(other.state_dict()) - set(runtime.weights())
        assert left == {"1.num_batches_tracked", "auxiliary.weight"}
        with pytest.raises(RefreshError, match=r"^the captured model has no weight 'auxiliary'"):
            runtime.update_weights({"auxiliary": torch.zeros(2)})


class Scored(nn.Module):
    """All items of two tables are scored by the rows that are also looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.bought, self.seen = nn.Embedding(9, 8), nn.Embedding(9, 8)

    def forward(self, bought: Tensor, seen: Tensor) -> dict[str, Tensor]:
        user = self.bought(bought) + self.seen(seen)
        return {"buy": user @ self.bought.weight.t(), "see": user @ self.seen.weight.t()}


def test_a_table_that_is_looked_up_and_multiplied_is_one(tmp_path: Path) -> None:
    """Stacked for its lookups, it is not stored again for its products."""
    torch.manual_seed(4)
    model, other = Scored().eval(), Scored().eval()
    request = {"bought": torch.randint(9, (4,)), "seen": torch.randint(9, (4,))}
    out = tmp_path / "s.rr"
    capture(model, request, out=out, buckets=[4], compiler="eager")

    def agree_with(expected: Scored) -> None:
        answer = {k: v.detach().numpy() for k, v in expected(**request).items()}
        agree(runtime.run(request), answer)

    with Runtime.load(out) as runtime:
        agree_with(model)
        runtime.update_weights(other.state_dict())
        agree_with(other)
        rows = torch.full((2, 8), 3.0)
        runtime.update_rows("seen.weight", [0, 7], rows)
        with torch.no_grad():
            other.seen.weight[[0, 7]] = rows
        agree_with(other)


class Windowed(nn.Module):
    """Reads a table, and a part of it by another name."""

    def __init__(self, cut: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4)
        self.register_buffer("part", cut(self.table.weight.detach()))

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids).sum(1) + self.part.sum()


def test_weights_that_are_parts_of_others_are_told(tmp_path: Path) -> None:
    example = {"ids": torch.tensor([1, 2, 19])}
    cuts = {
        "rows": lambda w: w[3:9],
        "columns": lambda w: w[:, 1:],
        "a copy": lambda w: w[3:].clone(),
    }
    for name, cut in cuts.items():
        manifest = capture(
            Windowed(cut).eval(), example, out=tmp_path / name, buckets=[2], compiler="eager"
        )
        told = [n for n in manifest.notices if "share memory in the model" in n]
        assert len(told) == (name != "a copy"), name
        assert all("weights 'table.weight' and 'part' share" in notice for notice in told)
