"""Steps of a model's own over packed sequences, and rows that it leaves out meanwhile: DIEN, as the
libraries have it that it is copied from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from recreplay.runtime import Runtime
from recreplay.runtime.errors import IdRangeError, UnsupportedModelError

Capture = Callable[..., Path]
ITEMS, PLACES, WIDTH, STATE = 50, 4, 8, 5


class Cell(nn.Module):
    """A GRU's, whose update gate is scaled by attention."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.states = nn.Linear(STATE, 3 * STATE), nn.Linear(STATE, 3 * STATE)

    def forward(self, item: Tensor, state: Tensor, score: Tensor) -> Tensor:
        reset, update, new = self.items(item).chunk(3, 1)
        kept, held, old = self.states(state).chunk(3, 1)
        gate = torch.sigmoid(update + held) * score.view(-1, 1)
        made = torch.tanh(new + torch.sigmoid(reset + kept) * old)
        return (1 - gate) * state + gate * made


class Interests(nn.Module):
    """Reads lists by a GRU, and its states again by `steps`."""

    def __init__(self, steps: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.cell = nn.Embedding(ITEMS, WIDTH), Cell()
        self.reader, self.top = nn.GRU(WIDTH, STATE, batch_first=True), nn.Linear(STATE, 2)
        self.steps = steps

    def packed(self, items: Tensor, lengths: Tensor) -> tuple[PackedSequence, Tensor]:
        packed = pack_padded_sequence(items, lengths.cpu(), True, enforce_sorted=False)
        states, _ = self.reader(packed)
        padded, _ = pad_packed_sequence(states, True, total_length=PLACES)
        scores = (padded * padded[:, :1]).sum(2)
        return states, pack_padded_sequence(scores, lengths.cpu(), True, enforce_sorted=False).data

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        found: Tensor = self.top(self.steps(self, self.table(ids), lengths))
        return found


def request(rows: int, least: int = 1) -> dict[str, Tensor]:
    return {
        "ids": torch.randint(0, ITEMS, (rows, PLACES)),
        "lengths": torch.randint(least, PLACES + 1, (rows,)),
    }


def all_states(model: Interests, packed: PackedSequence, scores: Tensor) -> PackedSequence:
    """As RecBole and funrec step."""
    items, counts, order, back = packed
    state = torch.zeros(int(counts[0]), STATE, dtype=items.dtype, device=items.device)
    states = torch.zeros(items.size(0), STATE, dtype=items.dtype, device=items.device)
    begin = 0
    for count in counts:
        part = slice(begin, begin + count)
        new = model.cell(items[part], state[0:count], scores[part])
        states[begin : begin + count] = new
        state = new
        begin += count
    return PackedSequence(states, counts, order, back)


def last_states(model: Interests, packed: PackedSequence, scores: Tensor) -> Tensor:
    """As FuxiCTR steps."""
    items, counts, _, back = packed
    state = torch.zeros(counts[0], STATE, device=items.device)  # type: ignore[call-overload]
    last = torch.zeros(counts[0], STATE, device=items.device)  # type: ignore[call-overload]
    begin = 0
    for count in counts:
        state = model.cell(
            items[begin : begin + count], state[:count], scores[begin : begin + count]
        )
        last[:count] = state
        begin += count
    return last[back]


def gathered(model: Interests, items: Tensor, lengths: Tensor) -> Tensor:
    states = all_states(model, *model.packed(items, lengths))
    padded, _ = pad_packed_sequence(states, True, total_length=PLACES)
    return padded.gather(1, (lengths - 1).view(-1, 1, 1).expand(-1, 1, STATE)).squeeze(1)


def masked(model: Interests, items: Tensor, lengths: Tensor) -> Tensor:
    """The last state by a mask of its place."""
    states = all_states(model, *model.packed(items, lengths))
    padded, _ = pad_packed_sequence(states, True, total_length=PLACES)
    places = torch.arange(PLACES).repeat(len(items), 1)
    return padded[places == (lengths.view(-1, 1) - 1)]


def summed(model: Interests, items: Tensor, lengths: Tensor) -> Tensor:
    """The sum of the states, added through a view of it."""
    (read, counts, _, back), scores = model.packed(items, lengths)
    state, found = (torch.zeros(int(counts[0]), STATE) for _ in range(2))
    total, begin = found.view(-1, STATE), 0
    for count in counts:
        part = slice(begin, begin + count)
        state = model.cell(read[part], state[:count], scores[part])
        total[:count] += state
        begin += count
    return found[back]


def written(model: Interests, items: Tensor, lengths: Tensor) -> Tensor:
    return last_states(model, *model.packed(items, lengths))


def collected(model: Interests, items: Tensor, lengths: Tensor) -> Tensor:
    """States are put behind one another."""
    packed, scores = model.packed(items, lengths)
    state, states, begin = torch.zeros(len(items), STATE), [], 0
    for count in packed.batch_sizes:
        part = slice(begin, begin + count)
        state = model.cell(packed.data[part], state[:count], scores[part])
        states.append(state)
        begin += count
    again = PackedSequence(torch.cat(states), *packed[1:])
    return pad_packed_sequence(again, True, total_length=PLACES)[0].sum(1)


def some_rows(model: Interests, items: Tensor, lengths: Tensor) -> Tensor:
    """Rows without items are left out, as funrec does."""
    rows, places, width = items.size()
    some = lengths > 0
    answer = torch.zeros(rows, STATE)
    if lengths[some].shape[0] == 0:
        return answer
    kept = torch.masked_select(items, some.view(-1, 1, 1)).view(-1, places, width)
    answer[some] = masked(model, kept, lengths[some])
    return answer


def rows_by_mask(model: Interests, items: Tensor, lengths: Tensor) -> Tensor:
    some = lengths > 0
    last = written(model, items[some], lengths[some])
    answer = torch.zeros([some.size(0), *last.shape[1:]])
    answer[some] = last
    return answer


@pytest.mark.parametrize("steps", [gathered, masked, written, summed, some_rows, rows_by_mask])
def test_steps_equal_eager(steps: Callable[..., Tensor], captured: Capture) -> None:
    model = Interests(steps).eval()
    least = 0 if steps in (some_rows, rows_by_mask) else 1
    path = captured(model, request(6), buckets=[1, 4], compiler="eager")
    with Runtime.load(path) as runtime, torch.no_grad():
        for rows in (1, 3, 9):
            given = request(rows, least)
            given["lengths"][-1] = least or PLACES
            given["lengths"][0] = 2
            got = runtime.run(given)["output"]
            np.testing.assert_allclose(got, model(**given).numpy(), rtol=1e-4, atol=1e-5)
        if not least:
            given["lengths"][:] = 0  # of whom torch would pack none
            got = runtime.run(given)["output"]
            np.testing.assert_allclose(got, model.top.bias.expand(rows, -1).numpy(), atol=1e-6)


def test_tables_may_have_a_row_of_padding_and_a_power_of_two(captured: Capture) -> None:
    """No number of rows is taken for theirs."""

    def normed(model: Interests, items: Tensor, lengths: Tensor) -> Tensor:
        last: Tensor = model.reader(pack_padded_sequence(items, lengths, True, False))[1][0]
        return last * nn.functional.normalize(model.table.weight)[:1, :STATE]

    model = Interests(normed).eval()
    model.table = nn.Embedding(2**16 + 1, WIDTH)
    captured(model, request(6), buckets=[4], compiler="eager")


def test_lengths_may_be_of_32_bits(captured: Capture) -> None:
    """A row that is left out has no place then, either."""

    def kept(model: Interests, items: Tensor, lengths: Tensor) -> Tensor:
        some, answer = lengths > 0, torch.zeros(len(items), STATE)
        places = torch.arange(PLACES).repeat(lengths[some].shape[0], 1)
        answer[some] = items[some][places == (lengths[some].view(-1, 1) - 1)][:, :STATE]
        return answer

    def narrow(rows: int) -> dict[str, Tensor]:
        given = request(rows, 0)
        return given | {"lengths": given["lengths"].int()}

    model = Interests(kept).eval()
    path = captured(model, narrow(6), buckets=[4], compiler="eager")
    with Runtime.load(path) as runtime, torch.no_grad():
        given = narrow(3)
        given["lengths"][1] = 0
        got = runtime.run(given)["output"]
        np.testing.assert_allclose(got, model(**given).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [gathered, masked])
def test_a_list_without_a_last_item_is_named(
    steps: Callable[..., Tensor], captured: Capture
) -> None:
    path = captured(Interests(steps).eval(), request(6), buckets=[4], compiler="eager")
    given = request(3)
    given["lengths"][1] = 0
    with (
        Runtime.load(path) as runtime,
        pytest.raises(IdRangeError, match=r"^input 'lengths', row 1: id 0 is out of range"),
    ):
        runtime.run(given)


@pytest.mark.inductor
def test_compiled(captured: Capture) -> None:
    model = Interests(some_rows).eval()
    path = captured(model, request(6), buckets=[8], compiler="inductor")
    with Runtime.load(path) as runtime, torch.no_grad():
        given = request(8, 0)
        given["lengths"][3] = 4
        got = runtime.run(given)["output"]
        np.testing.assert_allclose(got, model(**given).numpy(), rtol=1e-4, atol=1e-5)


def unequal(model: Interests, items: Tensor, lengths: Tensor) -> Tensor:
    packed, _ = model.packed(items, lengths)
    total, begin = torch.zeros(STATE), 0
    for count in packed.batch_sizes:
        total = total + packed.data[begin : 2 * begin + count].sum(0)
        begin += count
    return total.expand(len(items), -1)


def read_early(model: Interests, items: Tensor, lengths: Tensor) -> Tensor:
    packed, _ = model.packed(items, lengths)
    states, begin = torch.zeros_like(packed.data), 0
    for count in packed.batch_sizes:
        states[begin : begin + count] = packed.data[begin : begin + count] + states.sum()
        begin += count
    padded = PackedSequence(states, *packed[1:])
    return pad_packed_sequence(padded, True, total_length=PLACES)[0].sum(1)


def of_no_place(model: Interests, items: Tensor, lengths: Tensor) -> Tensor:
    packed, _ = model.packed(items, lengths)
    return torch.zeros(int(packed.batch_sizes[1]), STATE)


def drawn(model: Interests, items: Tensor, lengths: Tensor) -> Tensor:
    packed, _ = model.packed(items, lengths)
    return torch.rand(int(packed.batch_sizes[0]), STATE)


@pytest.mark.parametrize("steps", [unequal, read_early, of_no_place, drawn])
def test_other_steps_are_refused(steps: Callable[..., Tensor], captured: Capture) -> None:
    with pytest.raises(
        UnsupportedModelError,
        match=r"^how many lists have an item at each place \(batch_sizes\) is not .* at .*py:\d+:",
    ):
        captured(Interests(steps).eval(), request(6), buckets=[4], compiler="eager")


def fewer(model: Interests, items: Tensor, lengths: Tensor) -> Tensor:
    some = lengths > 0
    return items[some][:, 0, :STATE]  # the line to name


def numbered(model: Interests, items: Tensor, lengths: Tensor) -> Tensor:
    kept = torch.arange(len(items))[lengths > 0]
    answer = torch.zeros(len(items), STATE)
    answer[kept] = items[kept][:, 0, :STATE] + 1
    return answer


def added(model: Interests, items: Tensor, lengths: Tensor) -> Tensor:
    some = lengths > 0
    answer = torch.zeros(len(items), STATE)
    numbers = torch.arange(len(items))[some]
    answer.view(-1, STATE).index_add_(0, numbers, items[some][:, 0, :STATE])
    return answer


@pytest.mark.parametrize("steps", [numbered, added])
def test_rows_that_are_written_by_their_numbers_are_refused(
    steps: Callable[..., Tensor], captured: Capture
) -> None:
    """Those that were left out would be written, too."""
    with pytest.raises(UnsupportedModelError, match=r"^the model answers for some rows"):
        captured(Interests(steps).eval(), request(6), buckets=[4], compiler="eager")


def test_fewer_rows_than_were_given_are_refused(captured: Capture) -> None:
    with pytest.raises(
        UnsupportedModelError,
        match=r"^the model answers for some rows .*: return items\[some\]\[:, 0, :STATE\]  # the",
    ):
        captured(Interests(fewer).eval(), request(6), buckets=[4], compiler="eager")


class Trained(nn.Module):
    """Computes a loss beside its scores, of items that a mask selects, and gives the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.top = nn.Embedding(ITEMS, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, ids: Tensor) -> Tensor:
        scores: Any = self.top(self.table(ids)).squeeze(2)
        loss = scores[ids > 3].view(-1, 1).sigmoid().log().mean()
        return self.given(scores.sum(1), loss)[0]

    def given(self, scores: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
        return scores, loss


def test_a_loss_that_nothing_reads_is_left_out(captured: Capture) -> None:
    model = Trained().eval()
    path = captured(model, {"ids": request(6)["ids"]}, buckets=[4], compiler="eager")
    given = {"ids": request(3)["ids"]}
    with Runtime.load(path) as runtime, torch.no_grad():
        got = runtime.run(given)["output"]
        np.testing.assert_allclose(got, model(**given).numpy(), rtol=1e-4, atol=1e-5)
