"""Sequences packed by their lengths, as recurrent layers are given them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from recreplay.capture import capture
from recreplay.capture.ingest import ingest
from recreplay.capture.rewrites.recurrent import recurrent
from recreplay.capture.specialise import specialise
from recreplay.runtime import Runtime
from recreplay.runtime.errors import IdRangeError, UnsupportedModelError

Capture = Callable[..., Path]
aten = torch.ops.aten
ROWS, PLACES, WIDTH = 6, 5, 16


def example(rows: int = ROWS, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, PLACES + 1, (rows, 1), generator=g)
    ids = torch.randint(1, 9, (rows, PLACES), generator=g)
    return {"ids": ids * (torch.arange(PLACES) < lengths), "lengths": lengths[:, 0]}


class Read(nn.Module):
    """Histories, read by a recurrent layer."""

    def __init__(
        self, kind: str, layers: int = 1, bidirectional: bool = False, cells: bool = False
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.items = nn.Embedding(9, WIDTH, padding_idx=0)
        options = {"num_layers": layers, "bidirectional": bidirectional, "batch_first": True}
        self.reader = getattr(nn, kind)(WIDTH, WIDTH, **options)
        self.cells = cells

    def forward(self, ids: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        packed = pack_padded_sequence(
            self.items(ids), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        states, last = self.reader(packed)
        if isinstance(last, tuple):
            last = last[self.cells]
        padded, held = pad_packed_sequence(states, True, -1.0, PLACES + self.cells)
        return {"all": padded, "held": held, "last": last.transpose(0, 1)}


@pytest.mark.parametrize(
    ("kind", "layers", "bidirectional", "cells"),
    [
        ("GRU", 1, False, False),
        ("GRU", 2, True, False),
        ("LSTM", 1, True, False),
        ("LSTM", 1, False, True),
        ("LSTM", 2, True, True),
        ("RNN", 2, False, False),
    ],
)
def test_layers_read_what_lists_hold(
    kind: str, layers: int, bidirectional: bool, cells: bool, captured: Capture
) -> None:
    model = Read(kind, layers, bidirectional, cells).eval()
    with Runtime.load(captured(model, example(), buckets=(1, 4))) as runtime:
        for rows in (1, 3, 4, 9):
            compare(runtime, model, example(rows, rows))


def compare(runtime: Runtime, model: nn.Module, given: dict[str, Tensor]) -> None:
    with torch.no_grad():
        expected = model(**given)
    got = runtime.run(given)
    for name, tensor in expected.items():
        np.testing.assert_allclose(got[name], tensor.numpy(), 1e-4, 1e-6, err_msg=name)


class Rebuilt(nn.Module):
    """Places first, lengths of its own, a state to begin with, and layers over what is packed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.items = nn.Embedding(9, WIDTH, padding_idx=0)
        self.before = nn.Linear(WIDTH, WIDTH)
        self.reader = nn.GRU(WIDTH, WIDTH)
        self.first = nn.Parameter(torch.randn(1, 1, WIDTH))

    def forward(self, ids: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        held = (ids > 0).sum(1)
        packed = rnn.pack_padded_sequence(
            self.items(ids).transpose(0, 1), held.to("cpu"), enforce_sorted=False
        )
        data = self.before(packed.data).relu()
        again = PackedSequence(
            data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices
        )
        states, _ = self.reader(again, self.first.expand(-1, ids.shape[0], -1).contiguous())
        padded, _ = nn.utils.rnn.pad_packed_sequence(states, total_length=ids.shape[1])
        return {"mean": padded.sum(0) / held.unsqueeze(1) + lengths.unsqueeze(1)}


def test_what_is_packed_may_go_through_layers(captured: Capture) -> None:
    model = Rebuilt().eval()
    with Runtime.load(captured(model, example(), buckets=(4,))) as runtime:
        compare(runtime, model, example(7, 1))


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_layers_run_by_functions_of_ours(kind: str) -> None:
    program = specialise(ingest(Read(kind, 2, True).eval(), example()), 4)
    recurrent(program)
    targets = {node.target for node in program.graph.nodes}
    assert not targets & {aten.gru.input, aten.lstm.input}


def test_compiled_layers(captured: Capture) -> None:
    model = Read("LSTM", 1, True).eval()
    artifact = captured(model, example(), buckets=(4,), compiler="inductor")
    with Runtime.load(artifact) as runtime:
        compare(runtime, model, example(4, 2))


class Stepped(Read):
    """A step that is another one where few lists have an item."""

    def forward(self, ids: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        packed = pack_padded_sequence(self.items(ids), lengths, True, enforce_sorted=False)
        total = packed.data.new_zeros(WIDTH)
        for count in packed.batch_sizes:
            total = total + (1 if count > 2 else 2)  # the line to name
        return {"total": total.expand(ids.shape[0], -1)}


class Longest(Read):
    def forward(self, ids: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        packed = pack_padded_sequence(self.items(ids), lengths, True, enforce_sorted=False)
        padded, _ = pad_packed_sequence(self.reader(packed)[0], True)  # the line to name
        return {"mean": padded.mean(1)}


class Numbers(Read):
    def forward(self, ids: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        packed = pack_padded_sequence(self.items(ids), [2] * ids.shape[0], True)  # the line to name
        return {"last": self.reader(packed)[1][0]}


class Projected(Read):
    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.reader = nn.LSTM(WIDTH, WIDTH, batch_first=True, proj_size=4)

    def forward(self, ids: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        packed = pack_padded_sequence(self.items(ids), lengths, True, enforce_sorted=False)
        return {"last": self.reader(packed)[1][0][0]}  # the line to name


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Stepped, r"^how many lists have an item at each place \(batch_sizes\) is not to be had"),
        (
            Longest,
            r"^pad_packed_sequence makes as many places as .* give it total_length=5, as many",
        ),
        (Numbers, r"^lengths that are no tensor are not to be had of sequences that are packed"),
        (Projected, r"^a projection \(proj_size\) is not to be had of sequences that are packed"),
    ],
)
def test_what_lengths_would_shape_is_refused_by_line(
    model: Callable[[str], nn.Module], message: str, tmp_path: Path
) -> None:
    given = example()
    given["lengths"] = given["lengths"].sort(descending=True).values
    line = rf" at .*{Path(__file__).name}:\d+: .*# the line to name; a captured graph has"
    for part in (message, line):
        with pytest.raises(UnsupportedModelError, match=part):
            capture(model("GRU").eval(), given, out=tmp_path / "m.rr")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    bound = [rnn.pack_padded_sequence, rnn.pad_packed_sequence, nn.GRU.forward, nn.LSTM.forward]
    yield
    assert [pack_padded_sequence, pad_packed_sequence] == bound[:2]
    assert [nn.GRU.forward, nn.LSTM.forward] == bound[2:]


class Ranked(Read):
    """Candidates of one user, whose history is read once."""

    def forward(self, ids: Tensor, lengths: Tensor, item: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        state = super().forward(ids, lengths)["last"][:, 0]
        return {"score": (state * self.items(item)).sum(1)}


def test_the_history_of_a_user_is_packed_once(captured: Capture) -> None:
    model = Ranked("GRU").eval()
    given = {name: tensor[:1] for name, tensor in example(3).items()}
    items = {"item": torch.arange(6)}
    told = {name: tensor.expand(6, *tensor.shape[1:]) for name, tensor in given.items()}
    artifact = captured(
        model, {**told, **items}, buckets=(4, 8), user_inputs=["ids", "lengths"], users=1
    )
    with Runtime.load(artifact) as runtime, torch.no_grad():
        expected = model(**told, **items)["score"].numpy()
        np.testing.assert_allclose(runtime.run({**given, **items})["score"], expected, 1e-4, 1e-6)
        with pytest.raises(IdRangeError, match=r"^input 'lengths', row 0: id 6 is out of range"):
            runtime.run({**given, **items, "lengths": torch.tensor([6])})


class Ids(Read):
    """Ids are packed, and looked up then."""

    def forward(self, ids: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        packed = pack_padded_sequence(ids, lengths, True, enforce_sorted=False)
        padded, _ = pad_packed_sequence(packed, True, total_length=PLACES)
        found = packed._replace(data=self.items(packed.data))
        return {"ids": padded, "last": self.reader(found)[1][0]}


def test_ids_may_be_packed(captured: Capture) -> None:
    model = Ids("GRU").eval()
    given = example(5, 3)
    with Runtime.load(captured(model, given, buckets=(4, 8))) as runtime:
        assert runtime.manifest.unchecked == ()
        compare(runtime, model, given)


def test_other_threads_pack_as_torch_does(tmp_path: Path) -> None:
    """As a service does that answers by an eager model while it captures."""
    items, lengths = torch.randn(2, PLACES, WIDTH), torch.tensor([3, 1])

    def lengths_found() -> Tensor:
        packed = pack_padded_sequence(items, lengths, True)
        return pad_packed_sequence(nn.GRU(WIDTH, 4)(packed)[0], True)[0]

    class Meanwhile(Read):
        def forward(self, ids: Tensor, lengths: Tensor) -> dict[str, Tensor]:
            shapes.append(others.submit(lengths_found).result().shape)
            return super().forward(ids, lengths)

    shapes: list[torch.Size] = []
    with ThreadPoolExecutor(1) as others:
        options = {"buckets": [2], "compiler": "eager"}
        capture(Meanwhile("GRU").eval(), example(), out=tmp_path / "m.rr", **options)
    assert len(shapes) > 2
    assert set(shapes) == {(2, 3, 4)}


def test_threads_may_capture_at_once(tmp_path: Path) -> None:
    def one(model: nn.Module) -> None:
        out = tmp_path / f"{id(model)}.rr"
        capture(model, example(), out=out, buckets=[2], compiler="eager")
        with Runtime.load(out) as runtime:
            compare(runtime, model, example(3, 1))

    models = [Read(kind).eval() for kind in ("GRU", "LSTM", "RNN")]
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(one, models))


class Sorted(Read):
    """As a cell of one's own is begun: by states in the order in which torch packs the lists."""

    def forward(self, ids: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        packed = pack_padded_sequence(self.items(ids), lengths, True, enforce_sorted=False)
        first = self.items(ids[:, 0])[packed.sorted_indices].unsqueeze(0)
        _, last = self.reader(PackedSequence(packed.data, packed.batch_sizes), first)
        same = self.reader(packed)[0].unsorted_indices
        return {"last": last[0].index_select(0, packed.unsorted_indices), "same": first[0][same]}


def test_the_order_in_which_lists_are_packed_may_be_asked_for(captured: Capture) -> None:
    model = Sorted("GRU").eval()
    with Runtime.load(captured(model, example(), buckets=(1, 4))) as runtime:
        for rows in (1, 3, 6):
            compare(runtime, model, example(rows, rows))


class Written(Read):
    """What is packed, what it was packed of, and lengths are written into."""

    def forward(self, ids: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        items, counted = self.items(ids) * 2, lengths * 1
        packed = pack_padded_sequence(items, counted, True, enforce_sorted=False)
        counted.zero_()
        items.relu_()
        packed.data.tanh_()
        states, last = self.reader(packed)
        padded, held = pad_packed_sequence(states, True, total_length=PLACES)
        held -= 1
        again, _ = pad_packed_sequence(states, True, total_length=PLACES)
        return {"items": items.sum(1), "last": last[0], "all": padded + again, "held": held}


def test_what_is_packed_is_a_copy(captured: Capture) -> None:
    model = Written("GRU").eval()
    with Runtime.load(captured(model, example(), buckets=(4,))) as runtime:
        assert runtime.run(example(3))["held"].min() >= 0
        compare(runtime, model, example(7, 1))
