"""What a model asks of its own masks and numbers is answered while it is traced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recreplay.runtime import Runtime
from recreplay.runtime.artifact import MADE
from recreplay.runtime.errors import RefreshError, UnsupportedModelError

Capture = Callable[..., Path]
FIELDS, ITEMS, DIM = 6, 50, 8


class Fields(nn.Module):
    """Rows of fields, and the inner products of each two."""

    def __init__(self, how: Callable[[Fields, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(ITEMS, DIM)
        pairs = torch.triu(torch.ones(FIELDS, FIELDS), 1).bool()
        self.pairs = nn.Parameter(pairs, requires_grad=False)
        self.keep = nn.Buffer(torch.tensor([True, False, True, True, False, True]))
        self.count = nn.Buffer(torch.tensor(2))
        self.first = nn.Buffer(torch.tensor([3, 0, 5]))
        self.often = nn.Buffer(torch.tensor([1, 2, 0, 3, 1, 1]))
        self.how = how

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.table(ids)
        return self.how(self, rows, rows @ rows.transpose(1, 2))


def ids(rows: int) -> Tensor:
    return torch.randint(0, ITEMS, (rows, FIELDS))


def without(padding: int) -> Callable[[Fields, Tensor, Tensor], Tensor]:
    """Scores of all items but one, as libraries leave out the row of padding."""

    def scores(m: Fields, x: Tensor, g: Tensor) -> Tensor:
        items = torch.ones(size=(m.table.weight.size(0),), dtype=torch.bool)
        items[padding].zero_()
        return x.mean(1) @ m.table.weight[items].T

    return scores


def written(m: Fields, x: Tensor, g: Tensor) -> Tensor:
    x = x.clone()
    x[:, m.keep] = 0.5
    x[:, ~m.keep] = x[:, m.keep][:, :2] + 1
    return x.sum(1)


def written_beside(m: Fields, x: Tensor, g: Tensor) -> Tensor:
    """What a mask gives is a copy."""
    first = x[:, torch.arange(FIELDS) < 3]
    first += 1
    return torch.cat([x, first], 1).flatten(1)


HOW: dict[str, Callable[[Fields, Tensor, Tensor], Tensor]] = {
    "masked_select": lambda m, x, g: torch.masked_select(g, m.pairs).view(-1, 15),
    "masked_select of a row": lambda m, x, g: x.masked_select(m.keep[:, None]).view(-1, 4 * DIM),
    "pairs": lambda m, x, g: g[:, m.pairs],
    "pairs made": lambda m, x, g: g[:, torch.ones(FIELDS, FIELDS).tril(-1) == 1],
    "last is padding": without(ITEMS - 1),
    "seventh is padding": without(7),
    "kept": lambda m, x, g: x[:, m.keep & ~m.pairs[0]].sum(1),
    "paired": lambda m, x, g: x[:, torch.arange(FIELDS) < 3, (2, 0, 1)],
    "nonzero": lambda m, x, g: x[:, m.keep.nonzero().squeeze(1)].sum(1),
    "where": lambda m, x, g: g[:, *torch.where(m.pairs)],
    "int": lambda m, x, g: x[:, : int(m.count)].sum(1),
    "item": lambda m, x, g: x.flatten(1)[:, : (m.count * DIM).item()],  # type: ignore[misc]
    "tolist": lambda m, x, g: torch.cat([x[:, at] for at in m.first.tolist()], 1),
    "branch": lambda m, x, g: x.sum(1) if m.keep.all() else x.mean(1),
    "written": written,
    "written beside": written_beside,
    "compared by name": lambda m, x, g: x.sum(1) * torch.eq(input=x[:, 0], other=0),
    "repeated": lambda m, x, g: x.repeat_interleave(m.often, dim=1).flatten(1),
    "each twice": lambda m, x, g: x.sum(1) + m.often.repeat_interleave(torch.tensor([2]))[:DIM],
}


@pytest.mark.parametrize("how", HOW)
def test_values_of_the_model_s_own_are_known(how: str, captured: Capture) -> None:
    model = Fields(HOW[how]).eval()
    path = captured(model, {"ids": ids(6)}, buckets=[1, 4], compiler="eager")
    with Runtime.load(path) as runtime, torch.no_grad():
        for rows in (1, 3, 9):
            given = ids(rows)
            got = runtime.run({"ids": given})["output"]
            np.testing.assert_allclose(got, model(given).numpy(), rtol=1e-5, atol=1e-6)


def test_a_run_of_rows_is_not_copied(captured: Capture) -> None:
    path = captured(Fields(without(ITEMS - 1)).eval(), {"ids": ids(6)}, buckets=[4])
    assert not (path / MADE).exists()


def of_the_request(m: Fields, x: Tensor, g: Tensor) -> Tensor:
    keep = torch.ones(FIELDS, dtype=torch.bool)
    part = keep[1:]
    part[0] = x[0, 0, 0] > 0
    return x[:, keep].sum(1)


def drawn(m: Fields, x: Tensor, g: Tensor) -> Tensor:
    return x[:, torch.rand(FIELDS) > 0.5].sum(1)


def drawn_into(m: Fields, x: Tensor, g: Tensor) -> Tensor:
    return x[:, torch.ones(FIELDS, dtype=torch.bool).bernoulli_(0.5)].sum(1)


def of_weights(m: Fields, x: Tensor, g: Tensor) -> Tensor:
    """Which a refresh may change."""
    keep = torch.ones(FIELDS, dtype=torch.bool)
    torch.gt(m.table.weight[:FIELDS, 0], -100, out=keep)
    return x[:, keep].sum(1)


@pytest.mark.parametrize(
    "how", [of_the_request, of_weights, drawn, drawn_into], ids=lambda how: how.__name__
)
def test_other_values_are_not(
    how: Callable[[Fields, Tensor, Tensor], Tensor], captured: Capture
) -> None:
    """Of chance, or written into what was known, through another view of it."""
    with pytest.raises(UnsupportedModelError, match=r"depends on the data|draws random"):
        captured(Fields(how).eval(), {"ids": ids(6)}, buckets=[4], compiler="eager")


def test_what_a_model_counts_stays_its_own(captured: Capture) -> None:
    """The trace computes beside it, and not in it."""

    def counted(m: Fields, x: Tensor, g: Tensor) -> Tensor:
        times = m.count.clone()
        times += 1
        return x[:, : int(times)].sum(1)

    model = Fields(counted).eval()
    captured(model, {"ids": ids(6)}, buckets=[4], compiler="eager")
    assert int(model.count) == 2


def test_a_refresh_gives_what_the_model_was_captured_by(captured: Capture) -> None:
    """Another mask would change nothing, and a number half of what is made of it."""

    def both(m: Fields, x: Tensor, g: Tensor) -> Tensor:
        kept = m.keep.clone()
        kept[m.first] = True
        return x[:, : int(m.count + 1)].sum(1) * m.count + x[:, kept].sum(1)

    model = Fields(both).eval()
    path = captured(model, {"ids": ids(6)}, buckets=[4], compiler="eager")
    with Runtime.load(path) as runtime, torch.no_grad():
        assert set(runtime.manifest.settled) == {"count", "first", "keep"}
        model.table.weight.mul_(2)
        runtime.update_weights(model.state_dict())
        given = ids(4)
        want = model(given).numpy()
        np.testing.assert_allclose(runtime.run({"ids": given})["output"], want, rtol=1e-5)
        for name, other in (("keep", ~model.keep), ("count", model.count + 1)):
            with pytest.raises(RefreshError, match=rf"^weight '{name}' is not what it was at cap"):
                runtime.update_weights({"table.weight": model.table.weight * 3, name: other})
        with pytest.raises(RefreshError, match=r"^rows of 'keep' cannot change"):
            runtime.update_rows("keep", [1], model.keep[:1])
        np.testing.assert_allclose(runtime.run({"ids": given})["output"], want, rtol=1e-5)


def test_places_that_a_model_holds_are_settled_where_they_count(captured: Capture) -> None:
    def last(m: Fields, x: Tensor, g: Tensor) -> Tensor:
        number = (x[:, :1, 0] > 0).long() + 2
        return x[m.places.expand(len(x), -1) == number] * (m.first + m.count).sum()

    model = Fields(last)
    model.places = nn.Buffer(torch.arange(FIELDS))
    path = captured(model.eval(), {"ids": ids(6)}, buckets=[4], compiler="eager")
    with Runtime.load(path) as runtime, torch.no_grad():
        given = ids(3)
        got = runtime.run({"ids": given})["output"]
        np.testing.assert_allclose(got, model(given).numpy(), rtol=1e-5)
        assert set(runtime.manifest.settled) == {"places"}


def test_what_is_only_computed_with_may_change(captured: Capture) -> None:
    model = Fields(lambda m, x, g: x.sum(1) * (m.count + 1)).eval()
    path = captured(model, {"ids": ids(6)}, buckets=[4], compiler="eager")
    with Runtime.load(path) as runtime, torch.no_grad():
        assert not runtime.manifest.settled
        model.count.fill_(7)
        runtime.update_weights({"count": model.count})
        given = ids(3)
        got = runtime.run({"ids": given})["output"]
        np.testing.assert_allclose(got, model(given).numpy(), rtol=1e-5)
