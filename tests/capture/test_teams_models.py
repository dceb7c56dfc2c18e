"""Models as teams have them, and what is said of those that cannot be captured as they are."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recreplay.capture import capture, load_onnx
from recreplay.capture.onnx_export import export_onnx
from recreplay.runtime import Runtime
from recreplay.runtime.errors import CaptureError, UnsupportedModelError

Capture = Callable[..., Path]
inductor = pytest.param("inductor", marks=pytest.mark.inductor)


class Ids(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4, **options)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return x + self.table(ids)


def example() -> dict[str, Tensor]:
    return {"x": torch.randn(8, 4), "ids": torch.randint(0, 9, (8,))}


def agrees(path: Path, model: nn.Module, given: dict[str, Tensor], **tolerance: float) -> None:
    with Runtime.load(path) as runtime, torch.no_grad():
        for rows in (1, 3, 8):
            part = {name: tensor[:rows] for name, tensor in given.items()}
            got = runtime.run({name: tensor.numpy() for name, tensor in part.items()})
            np.testing.assert_allclose(got["output"], model(**part).numpy(), **tolerance)


# What is right


class Both(nn.Module):
    """The last states of a layer that reads both ways, as its documentation has them."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.GRU(4, 6, batch_first=True, bidirectional=True)

    def forward(self, seq: Tensor) -> Tensor:
        _, last = self.read(seq)
        return torch.cat([last[-2], last[-1]], 1)


def test_pieces_counted_from_the_end_are_joined(captured: Capture) -> None:
    given = {"seq": torch.randn(8, 5, 4)}
    model = Both().eval()
    agrees(captured(model, given, buckets=[1, 8]), model, given, rtol=1e-4, atol=1e-5)


class Padded(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(100, 8, mode=mode, padding_idx=0)

    def forward(self, ids: Tensor) -> Tensor:
        return self.bag(ids)


@pytest.mark.parametrize("compiler", ["eager", inductor])
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bags_leave_an_id_out(captured: Capture, compiler: str, mode: str) -> None:
    given = {"ids": torch.randint(0, 3, (8, 5))}
    model = Padded(mode).eval()
    buckets = [8] if compiler == "inductor" else [1, 8]
    path = captured(model, given, buckets=buckets, compiler=compiler)
    agrees(path, model, given, rtol=1e-4, atol=1e-5)


class Interactions(nn.Module):
    """Of a factorization machine: small differences of large sums."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5000, 32)

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.table(ids)
        return 0.5 * (rows.sum(1) ** 2 - (rows**2).sum(1)).sum(1)


@pytest.mark.inductor
def test_rounding_is_measured_by_what_was_added_up(captured: Capture) -> None:
    torch.manual_seed(0)
    given = {"ids": torch.randint(0, 5000, (8, 40))}
    model = Interactions().eval()
    path = captured(model, given, buckets=[256], compiler="inductor")
    agrees(path, model, given, rtol=1e-4, atol=0.02)


class Half(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        layers = [nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)]
        self.layers = nn.Sequential(*layers).to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.to(self.dtype)).float()


@pytest.mark.inductor
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_models_in_half_precision_are_held_to_it(captured: Capture, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    model, given = Half(dtype).eval(), {"x": torch.randn(8, 32)}
    path = captured(model, given, buckets=[8], compiler="inductor")
    with Runtime.load(path) as runtime:
        assert runtime.manifest.parity[0].rtol == {torch.float16: 0.005}.get(dtype, 0.02)


class Batch(NamedTuple):
    x: Tensor
    ids: Tensor


class Scores(NamedTuple):
    click: Tensor
    buy: Tensor


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)

    def forward(self, batch: Batch) -> Scores:
        return Scores((batch.x + self.table(batch.ids)).sum(1), batch.x.sum(1))


def test_named_tuples_keep_their_names(captured: Capture) -> None:
    model, given = Named().eval(), example()
    path = captured(model, {"batch": Batch(**given)}, buckets=[8])
    with Runtime.load(path) as runtime, torch.no_grad():
        got = runtime.run({f"batch_{name}": tensor.numpy() for name, tensor in given.items()})
        want = model(Batch(**given))
    for name in ("click", "buy"):
        np.testing.assert_allclose(got[name], getattr(want, name).numpy(), rtol=1e-4, atol=1e-5)


class Hashed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.again = nn.Embedding(1000, 4), nn.Embedding(9, 4)

    def forward(self, raw: Tensor, key: Tensor) -> Tensor:
        return self.table(raw % 1000) + self.again(key * 3) + self.again(key * 2)


def test_ids_that_a_table_always_has_are_no_notice(captured: Capture) -> None:
    given = {"raw": torch.randint(0, 10**9, (8,)), "key": torch.zeros(8, dtype=torch.int64)}
    with Runtime.load(captured(Hashed().eval(), given, buckets=[8])) as runtime:
        assert runtime.manifest.unchecked == ("again.weight",)


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 8, padding_idx=0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.layers(self.table(ids), src_key_padding_mask=ids == 0).mean(1)


def test_attention_answers_a_row_alike_beside_any_others(captured: Capture) -> None:
    """torch has another way for requests whose rows are all padded on the right."""
    model = Attending().eval()
    ids = torch.randint(1, 50, (8, 6))
    ids[:, 4:] = 0
    said = list[str]()
    path = captured(model, {"ids": ids}, buckets=[1, 8], progress=said.append)
    assert any("of the example differs by" in line and "fast path" in line for line in said)
    assert torch.backends.mha.get_fastpath_enabled()
    with Runtime.load(path) as runtime:
        got = runtime.run({"ids": ids.numpy()})["output"]
    np.testing.assert_allclose(got, model(ids).detach().numpy(), rtol=1e-4, atol=1e-5)


class Of(nn.Module):
    """What `make` makes of x."""

    def __init__(self, make: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Tensor:
        return self.make(x)


class Frame:
    """Columns that go through a model as one, as libraries of tabular models have it."""

    def __init__(self, *columns: Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return self.columns[0].shape[0]


class Four:
    """Has a length without an object."""

    @staticmethod
    def __len__() -> int:
        return 4


def heads_in_rows(x: Tensor) -> Tensor:
    """As much code of attention has its heads: each is as many rows more."""
    rows = torch.cat(torch.split(x, 3, dim=2), dim=0)
    return torch.cat(torch.split(rows.softmax(-1), x.shape[0], dim=0), dim=2)


def joined_again(x: Tensor) -> Tensor:
    """Of attention over features that come first: its results, added to what it was given."""
    rows = x.transpose(0, 1).reshape(-1, 6).sigmoid()
    added = (rows.view(4, -1, 6).transpose(0, 1) + x).transpose(0, 1)
    return added.view(-1, 6).view(4, -1, 6).transpose(0, 1)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(heads_in_rows, id="split"),
        pytest.param(lambda x: torch.cat([x, x * 2]).chunk(2)[1], id="chunk"),
        pytest.param(
            lambda x: torch.take_along_dim(x, x.sum(2, keepdim=True).argsort(1)[:, :2], dim=1),
            id="take_along_dim",
        ),
        pytest.param(lambda x: x * x.data.eq(0) + x.data, id="data"),
        pytest.param(lambda x: x.reshape(len(x), -1) @ torch.ones(24, len(x[0])), id="len"),
        pytest.param(lambda x: x.reshape(len(Frame(x)), -1), id="len-of-columns"),
        pytest.param(lambda x: x.reshape(-1, len(Four()) * 6), id="len-of-none"),
        pytest.param(lambda x: x.mT.unsqueeze(2).reshape(-1, 24), id="reshape-over-one"),
        pytest.param(joined_again, id="view-of-turned"),
        pytest.param(lambda x: torch.cdist(x[:, 0], torch.eye(30, 6)), id="cdist-of-many"),
        pytest.param(lambda x: torch.cdist(x[:, 0], torch.eye(6)), id="cdist-of-few"),
    ],
)
def test_calls_that_torch_traces_for_one_batch_alone(
    captured: Capture, make: Callable[[Tensor], Tensor]
) -> None:
    given, model = {"x": torch.randn(8, 4, 6)}, Of(make).eval()
    path = captured(model, given, buckets=[1, 8])
    agrees(path, model, given, rtol=1e-5, atol=1e-5)


class Fills(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        filled = x * 1
        filled[x < 0] = 0.5
        return filled


def test_numbers_of_a_layer_are_no_tensors_that_it_has(captured: Capture) -> None:
    said, given, model = list[str](), {"x": torch.randn(8, 4)}, nn.Sequential(Fills()).eval()
    path = captured(model, {"input": given["x"]}, buckets=[1, 8], progress=said.append)
    assert not [line for line in said if "new weights" in line]
    with Runtime.load(path) as runtime:
        got = runtime.run({"input": given["x"]})["output"]
    np.testing.assert_array_equal(got, model(given["x"]).numpy())


@cache
def cached_mask(length: int) -> Tensor:
    return torch.ones(length, length).tril()


class Keeping(Ids):
    """Keeps from one call to the next what depends on a length, and what it makes of its table."""

    unit: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.masks: dict[int, Tensor] = {}
        self.register_buffer("positions", torch.zeros(0), persistent=False)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        if x.shape[1] not in self.masks:
            self.masks[x.shape[1]] = cached_mask(x.shape[1]) * 2
            self.positions = torch.arange(x.shape[1]).cos()
        if self.unit is None:
            self.unit = nn.functional.normalize(self.table.weight)
        read = nn.functional.embedding(ids, self.unit)
        return (x + read) @ self.masks[x.shape[1]] @ cached_mask(x.shape[1]) + self.positions


def test_what_a_model_keeps_between_calls_stays_its_own(captured: Capture) -> None:
    """torch.export would leave tensors without numbers in caches, and `inference_mode` those that
    no layer can be trained with."""
    model, given, said = Keeping().eval(), example(), list[str]()
    path = captured(model, given, buckets=[1, 8], progress=said.append)
    agrees(path, model, given, rtol=1e-5, atol=1e-5)
    model(given["x"].requires_grad_(), given["ids"]).sum().backward()
    assert [line.partition(":")[0] for line in said if "new weights" in line] == [
        "tensor unit of the model is neither a parameter nor a buffer"
    ]


@pytest.mark.inductor
def test_attention_over_queries_is_not_taken_for_the_usual_one(captured: Capture) -> None:
    """LightSANs has both products and a softmax over the items that ask."""
    model = Of(lambda x: ((x @ x.mT) / 3).softmax(-2) @ x)
    given = {"x": torch.randn(8, 2, 5, 4)}
    path = captured(model.eval(), given, buckets=[8], compiler="inductor")
    agrees(path, model, given, rtol=1e-4, atol=1e-5)


class Written(nn.Module):
    """Columns written one after the other, as code with an `out` does."""

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(x.shape[0], 4)
        out[:, 0] = x.sum(1)
        out[:, 1:3] = x[:, :2]
        return out


def test_what_writes_to_a_part_copies_no_more_than_what_it_writes_to(captured: Capture) -> None:
    """torch copies the storage of what is written to, however small the tensor in it is."""
    given = {"x": torch.randn(8, 4)}
    model = Written().eval()
    path = captured(model, given, buckets=[8])
    agrees(path, model, given)
    with Runtime.load(path) as runtime:
        with torch.profiler.profile(profile_memory=True) as profile:
            runtime.run(given)
        assert 0 < max(event.self_cpu_memory_usage for event in profile.events()) < 10_000


def test_bucket_sizes_may_be_numpys(tmp_path: Path) -> None:
    sizes = np.array([1, 8])
    found = capture(Ids().eval(), example(), out=tmp_path / "m.rr", buckets=sizes, compiler="eager")
    assert [bucket.size for bucket in found.buckets] == [1, 8]


# ONNX


class Operators(nn.Module):
    """With an input and an output that are called as operators are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 2)

    def forward(self, cat: Tensor, x: Tensor) -> dict[str, Tensor]:
        return {"linear": self.layer(torch.cat([cat, x], 1))}


def test_names_of_operators_are_names_of_inputs_too(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    given = {"cat": torch.randn(8, 4), "x": torch.randn(8, 2)}
    out = tmp_path / "m.rr"
    capture(Operators().eval(), given, out=out, buckets=[1, 8], compiler="eager")
    assert export_onnx(out, tmp_path / "m.onnx")["linear"] < 1e-5
    again = load_onnx(tmp_path / "m.onnx")
    found = capture(again, given, out=tmp_path / "again.rr", buckets=[1, 8], compiler="eager")
    assert [spec.name for spec in found.inputs] == ["cat", "x"]
    assert [spec.name for spec in found.outputs] == ["linear"]


def test_an_export_that_cannot_be_checked_is_told(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    out = tmp_path / "m.rr"
    given = {"x": torch.randn(8, 32)}
    capture(Half(torch.bfloat16).eval(), given, out=out, buckets=[8], compiler="eager")
    message = r"^ONNX Runtime, by which an export is checked, cannot run the model: .*nothing was w"
    with pytest.raises(CaptureError, match=message):
        export_onnx(out, tmp_path / "m.onnx")


class Positions(nn.Module):
    """As sequential recommenders make them, by sizes that are the batch's."""

    def __init__(self) -> None:
        super().__init__()
        self.item, self.place = nn.Embedding(50, 4), nn.Embedding(6, 4)

    def forward(self, seq: Tensor) -> Tensor:
        at = torch.arange(seq.shape[1]).unsqueeze(0).expand_as(seq)
        return (self.item(seq) + self.place(at)).mean((1, 2)) + torch.full_like(seq[:, 0], 2)


@pytest.mark.parametrize("dynamo", [True, False])
def test_whole_numbers_expanded_to_the_batch_leave_it_free(tmp_path: Path, dynamo: bool) -> None:
    pytest.importorskip("onnxscript")
    model, seq = Positions().eval(), torch.randint(0, 50, (8, 6))
    free: dict[str, Any] = {"dynamic_shapes": ({0: "batch"},)}
    if not dynamo:
        free = {"dynamic_axes": {"seq": {0: "batch"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (seq,), tmp_path / "m.onnx", input_names=["seq"], dynamo=dynamo, **free
        )
    out = tmp_path / "m.rr"
    capture(load_onnx(tmp_path / "m.onnx"), {"seq": seq}, out=out, buckets=[1, 8], compiler="eager")
    with Runtime.load(out) as runtime:
        for rows in (1, 3, 8):
            (got,) = runtime.run({"seq": seq[:rows].numpy()}).values()
            want = model(seq[:rows]).detach().numpy()
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


# What is refused


class OfOneDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["x"] + self.table(batch["ids"])


def test_a_dict_of_all_inputs_is_given_nested(captured: Capture, tmp_path: Path) -> None:
    model, given = OfOneDict().eval(), example()
    message = r"given: x, ids; if it is a dict of them, give \{'batch': \{\.\.\.\}\}$"
    with pytest.raises(CaptureError, match=message):
        capture(model, given, out=tmp_path / "m.rr")
    with Runtime.load(captured(model, {"batch": given}, buckets=[8])) as runtime:
        got = runtime.run({f"batch_{name}": tensor.numpy() for name, tensor in given.items()})
    want = model(given).detach().numpy()
    np.testing.assert_allclose(got["output"], want, rtol=1e-4, atol=1e-5)


def training() -> nn.Module:
    model = Ids().eval()
    model.table.train()
    return model


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a class": (lambda: Ids, "the model is the type 'Ids'; expected an nn.Module, such as one th"),
    "a function": (lambda: example, "the model is the function 'example'; expected an nn.Module"),
    "a list": (list, "the model is a list; expected an nn.Module"),
    "compiled": (lambda: torch.compile(Ids().eval()), r"OptimizedModule; .* model\._orig_mod$"),
    "parallel": (lambda: nn.DataParallel(Ids().eval()).eval(), r"in DataParallel; .* model\.modu"),
    "training": (training, "module 'table' of Ids is in training mode, .* call model.eval"),
    "max_norm": (lambda: Ids(max_norm=1.0).eval(), r"'table' has max_norm=1\.0, .* torch\.renorm"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_model_that_can_be_captured(what: str, tmp_path: Path) -> None:
    make, message = REFUSED[what]
    with pytest.raises(CaptureError, match=message):
        capture(make(), example(), out=tmp_path / "m.rr")
    assert not list(tmp_path.iterdir())


def test_torchscript(tmp_path: Path) -> None:
    traced = torch.jit.trace(Ids().eval(), tuple(example().values()))
    with pytest.raises(UnsupportedModelError, match=r"TorchScript, .* the nn.Module that it"):
        capture(traced, example(), out=tmp_path / "m.rr")


def test_an_example_that_the_model_fails_on(tmp_path: Path) -> None:
    bad = {**example(), "ids": torch.full((8,), 9)}
    message = (
        "^the model itself fails on its example inputs: IndexError: index out of range in self"
    )
    with pytest.raises(CaptureError, match=message):
        capture(Ids().eval(), bad, out=tmp_path / "m.rr")


class Sparse(Ids):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("adjacent", torch.eye(9).to_sparse())

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return x + torch.sparse.mm(self.adjacent, self.table.weight)[ids]


class NamedGraph(Ids):
    def __init__(self) -> None:
        super().__init__()
        self.graph = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return (x * self.graph).ravel().view(x.shape) + self.table(ids)


class Counts(Ids):
    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        self.table.weight.data.mul_(0.99)
        return x + self.table(ids)


@dataclass
class Fields:
    click: Tensor


class Structured(Ids):
    def forward(self, x: Tensor, ids: Tensor) -> Any:
        return Fields(super().forward(x, ids))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Sparse(), r"^'adjacent' of the model is a sparse tensor \(torch\.sparse_coo\)"),
        (NamedGraph(), r"'graph' already exists\); give it another name$"),
        (Counts(), r"^the model writes to table\.weight during forward; "),
        (Structured(), r"^the model returns Fields; expected a tensor, a tuple or a dict of"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_models_that_programs_cannot_be_are_told_why(
    model: nn.Module, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        capture(model.eval(), example(), out=tmp_path / "m.rr")


class Detached(Ids):
    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return x + nn.functional.embedding(ids, self.table.weight.data)


def test_weights_are_read_as_data(captured: Capture) -> None:
    model, given = Detached().eval(), example()
    with Runtime.load(captured(model, given, buckets=[8])) as runtime:
        new = {"table.weight": torch.randn(9, 4)}
        runtime.update_weights(new)
        want = given["x"] + new["table.weight"][given["ids"]]
        np.testing.assert_allclose(runtime.run(given)["output"], want.numpy(), rtol=1e-6)


class FromMinusOne(Ids):
    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return x + self.table(ids + 1)


def test_ids_of_the_example_that_requests_may_not_have_are_told(captured: Capture) -> None:
    given, said = {**example(), "ids": torch.arange(-1, 7)}, list[str]()
    captured(FromMinusOne().eval(), given, buckets=[8], progress=said.append)
    told = [line for line in said if "'ids' of the example has id -1" in line]
    assert [line.partition("refused: ")[2].partition(";")[0] for line in told] == [
        "ids of table 'table.weight[1:]' are 0 to 7"
    ]


class Compares(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] > 4 else x


class Counts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        each = torch.tensor([0.5] * len(x))
        return x * each.unsqueeze(1)


class Fixes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.ones(8, 1)


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class Leaves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.sort(x.cpu().numpy(), 1))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Compares(),
            r"with something at .*if x\.shape\[0\] > 4 else x\. .*the generated guard 5 <= ",
        ),
        (Counts(), r"the example's 8 at .*: each = torch\.tensor\(\[0\.5\] \* len\(x\)\); take"),
        (
            Fixes(),
            r"the example's 8 at .*: return x \+ torch\.ones\(8, 1\); .* your code specialized it",
        ),
        (Branches(), r"branches or sizes a tensor on data .*x\.sum\(\) > 0 else x"),
        (Leaves(), r"takes a tensor out of torch by 'numpy' at .*np\.sort.*with those, or before"),
    ],
    ids=["compares", "counts", "fixes", "branches", "leaves"],
)
def test_what_no_graph_can_be_made_of_is_told_why(
    model: nn.Module, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        capture(model.eval(), {"x": torch.randn(8, 4)}, out=tmp_path / "m.rr")
    assert capfd.readouterr() == ("", "")


class Tells(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            print("exported", file=sys.stderr)
        return x * 2 if x.sum() > 0 else x


def test_what_a_refused_model_writes_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UnsupportedModelError, match=r"^the model branches or sizes a tensor on da"):
        capture(Tells().eval(), {"x": torch.randn(8, 4)}, out=tmp_path / "m.rr")
    assert {*capsys.readouterr().err.splitlines()} == {"exported"}


def test_a_process_may_have_nowhere_to_write(
    captured: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # as services without a console have it
    model, given = Ids().eval(), example()
    agrees(captured(model, given, buckets=[1, 8]), model, given, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("buckets", [8, [0], [True], ["1"], []])
def test_bucket_sizes_that_are_none(buckets: Any, tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"^buckets are batch sizes of 1 to 2147483647; got "):
        capture(Ids().eval(), example(), out=tmp_path / "m.rr", buckets=buckets)


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CaptureError, match=r"^nothing can be written to .*file/in: "):
        capture(Ids().eval(), example(), out=tmp_path / "file" / "in" / "m.rr", compiler="eager")
