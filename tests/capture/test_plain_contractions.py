"""Products with weights of several matrices: as what, and that scores are the model's."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from recreplay.capture.ingest import ingest
from recreplay.capture.program import Program
from recreplay.capture.rewrites.pack_linears import pack_linears
from recreplay.capture.rewrites.stack_branches import plan_weight_stacks, stack_branches
from recreplay.capture.specialise import specialise
from recreplay.runtime import Runtime
from recreplay.runtime.aten import PACKED_LINEAR

Run = Callable[[Any, Tensor], Tensor]
aten = torch.ops.aten
FIELDS, WIDTH = 3, 6


class Products(nn.Module):
    """`run` of fields `[B, FIELDS, WIDTH]` and weights of several matrices."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.run = run
        self.each = nn.Parameter(torch.randn(FIELDS, WIDTH, 4))
        self.turned = nn.Parameter(torch.randn(FIELDS, 4, WIDTH))
        self.experts = nn.Parameter(torch.randn(5, WIDTH, 4))
        self.tasks = nn.Parameter(torch.randn(FIELDS, WIDTH, 2, 4))
        self.pairs = nn.Parameter(torch.randn(FIELDS, 2, WIDTH, 4))
        self.wide = nn.Parameter(torch.randn(1, FIELDS, 8, WIDTH))
        self.kernel = nn.Parameter(torch.randn(8, FIELDS, WIDTH))
        self.list = nn.ParameterList(nn.Parameter(torch.randn(WIDTH, 8)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


LANES: dict[str, Run] = {
    "fields": lambda m, x: torch.einsum("bfi,fio->bfo", x, m.each),
    "fields of a turned weight": lambda m, x: torch.einsum("bfi,foi->bfo", x, m.turned),
    "fields in another order": lambda m, x: torch.einsum("fio,bfi->ofb", m.each, x).permute(
        2, 1, 0
    ),
    "several columns": lambda m, x: torch.einsum("bfi,fito->btfo", x, m.tasks),
    "broadcast": lambda m, x: torch.matmul(x.unsqueeze(2), m.each).squeeze(2),
    "of few rows each": lambda m, x: x.unsqueeze(1).expand(-1, 2, -1, -1).unsqueeze(3) @ m.each,
    "a part": lambda m, x: torch.einsum("bfi,fio->bfo", x[..., 1:5], m.each[:, 1:5]),
    "experts": lambda m, x: torch.einsum("bi,eio->beo", x[:, 0], m.experts),
    "experts of lists": lambda m, x: torch.einsum("bli,eio->belo", x, m.experts),
    "experts by matmul": lambda m, x: (x[:, 0].unsqueeze(0) @ m.experts).transpose(0, 1),
    "experts by a broadcast": lambda m, x: (x[:, None, :1] @ m.experts).squeeze(2),
    "elements": lambda m, x: (m.wide * x.unsqueeze(2)).sum(3),
    "elements of a turned weight": lambda m, x: torch.sum(x.unsqueeze(1) * m.kernel, -1),
    "elements of the same place": lambda m, x: (m.wide * x.unsqueeze(2)).sum(1),
    "fields of domains": lambda m, x: torch.einsum(
        "bfgi,fgio->gbfo", x.unsqueeze(2).expand(-1, -1, 2, -1), m.pairs
    ).transpose(0, 1),
}
SUMS: dict[str, Run] = {
    "over fields": lambda m, x: torch.einsum("bfi,fio->bo", x, m.each),
    "over fields in another order": lambda m, x: torch.einsum("bif,fio->bo", x.mT, m.each),
    "of a turned weight": lambda m, x: torch.einsum("bfi,ofi->bo", x, m.turned.transpose(0, 1)),
    "of elements": lambda m, x: (x.unsqueeze(1) * m.kernel).sum((2, 3)),
    "of one field": lambda m, x: (x[:, None, :1] * m.kernel[:, :1]).sum(-1, keepdim=True),
    "of outer products": lambda m, x: torch.einsum(
        "bfij,fiju->bu", x[..., :2].unsqueeze(3) * x.unsqueeze(2), m.pairs
    ),
}
OTHERS: dict[str, Run] = {
    "no columns": lambda m, x: torch.einsum("bfi,fi->bf", x, m.each[..., 0]),
    "few columns": lambda m, x: (m.wide[:, :, :7] * x.unsqueeze(2)).sum(3),
    "a mean": lambda m, x: (m.wide * x.unsqueeze(2)).mean(3),
    "elements of a request": lambda m, x: (x.unsqueeze(1) * x.unsqueeze(2)).sum(3),
    "sums apart": lambda m, x: torch.einsum("bfi,ftio->bto", x, m.pairs),
    "a trace": lambda m, x: torch.einsum("bff,fio->bfo", x[..., :3], m.each[:, :2]),
    "two requests": lambda m, x: torch.einsum("bfi,bgi->bfg", x, x),
    "dots": lambda m, x: torch.einsum("...i,fio->...fo", x[:, 0], m.each),
    "repeated columns": lambda m, x: torch.einsum("bfi,eio->bfeo", x, m.each[:1].expand(5, -1, -1)),
    "stretched": lambda m, x: torch.einsum("bfi,fio->bfo", x[:, :1], m.each),
}


def specialised(run: Run) -> Program:
    return specialise(ingest(Products(run).eval(), {"x": torch.randn(4, FIELDS, WIDTH)}), 4)


def targets(program: Program) -> list[object]:
    return [n.target for n in program.graph.nodes if n.op == "call_function"]


@pytest.mark.parametrize("run", LANES.values(), ids=LANES)
def test_weights_of_several_matrices_are_multiplied_as_they_lie(run: Run) -> None:
    made = specialised(run)
    found = targets(made)
    assert found.count(aten.bmm.default) == 1
    assert not {aten.einsum.default, aten.matmul.default} & set(found)


@pytest.mark.parametrize("run", SUMS.values(), ids=SUMS)
def test_sums_over_several_dimensions_are_layers(run: Run) -> None:
    found = targets(specialised(run))
    assert found.count(aten.linear.default) == 1
    assert aten.einsum.default not in found


@pytest.mark.parametrize("run", OTHERS.values(), ids=OTHERS)
def test_other_products_stay_as_they_are(run: Run) -> None:
    assert not {aten.bmm.default, aten.linear.default} & set(targets(specialised(run)))


ELEMENTWISE: dict[str, Run] = {
    "outer products": lambda m, x: torch.einsum("bfi,bfj->bfij", x, x),
    "of fields": lambda m, x: torch.einsum("bfd,bgd->bfgd", x, x),
    "in another order": lambda m, x: torch.einsum("bfd,bgd->dbgf", x, x).permute(1, 0, 2, 3),
    "dot products": lambda m, x: torch.einsum("bfi,bfi->bf", x, x.flip(1)),
    "of all": lambda m, x: torch.einsum("bfi,bif->b", x, x.transpose(1, 2).flip(1)),
    "by a vector": lambda m, x: torch.einsum("bi,i->bi", x[:, 0], m.list[0][:, 0]),
    "columns by rows": lambda m, x: x.unsqueeze(3) @ x[:, :, None, 1:2],
    "by one number": lambda m, x: torch.bmm(x[:, 0].unsqueeze(2), x[:, 1:2, :1]),
}


@pytest.mark.parametrize("run", ELEMENTWISE.values(), ids=ELEMENTWISE)
def test_what_only_multiplies_elements_is_no_product_of_matrices(run: Run) -> None:
    products = (aten.bmm.default, aten.einsum.default, aten.matmul.default, aten.linear.default)
    assert not set(products) & set(targets(specialised(run)))


@pytest.mark.parametrize("dtype", [torch.int32, torch.float16])
def test_sums_of_other_types_are_torchs(dtype: torch.dtype) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return torch.einsum("bfi,bfi->bf", (8 * x).to(dtype), x.to(dtype))

    assert aten.einsum.default in targets(specialised(run))


def forms(m: Any, x: Tensor) -> Tensor:
    return torch.einsum("bi,eij,bj->be", x[:, 0], m.experts, x[:, 1, :4])


def test_of_three_factors_the_weight_is_multiplied_first() -> None:
    found = targets(specialised(forms))
    assert found.index(aten.bmm.default) < found.index(aten.einsum.default)


REPEATED: dict[str, Run] = {
    "matmul": lambda m, x: x @ m.list[0].expand(x.shape[0], -1, -1),
    "einsum": lambda m, x: torch.einsum("bfi,bio->bfo", x, m.list[0].expand(x.shape[0], -1, -1)),
    "one of several": lambda m, x: x @ m.each[1:2].expand(x.shape[0], -1, -1),
    "and turned": lambda m, x: x @ m.turned[0].t().expand(x.shape[0], -1, -1),
}


@pytest.mark.parametrize("run", REPEATED.values(), ids=REPEATED)
def test_a_weight_that_is_repeated_for_each_row_is_one_layer(run: Run) -> None:
    made = specialised(run)
    assert targets(made).count(aten.linear.default) == 1
    assert not {aten.bmm.default, aten.einsum.default, aten.matmul.default} & set(targets(made))
    sizes = [n.meta["val"].numel() for n in made.placeholders.values()]
    assert max(sizes) <= 4 * FIELDS * WIDTH  # no weight has more, but for the input


def test_lanes_read_the_stored_weight() -> None:
    made = specialised(LANES["fields"])
    pack_linears(made)
    (packed,) = [n for n in made.graph.nodes if str(n.target) == PACKED_LINEAR]
    assert packed.args[1].target == "weight:each"
    assert packed.args[3] == 0  # in no blocks


def test_the_rows_of_experts_are_not_repeated() -> None:
    made = specialised(LANES["experts"])
    pack_linears(made)
    (packed,) = [n for n in made.graph.nodes if str(n.target) == PACKED_LINEAR]
    assert [list(n.meta["val"].shape) for n in packed.args[:2]] == [[1, 4, 6], [5, 6, 4]]
    assert list(packed.meta["val"].shape) == [5, 4, 4]


def test_branches_with_weights_that_lie_turned_are_lanes() -> None:
    made = specialised(lambda m, x: torch.cat([(x[:, 0] @ w).relu() for w in m.list], 1))
    stack_branches(made, plan_weight_stacks(made))
    pack_linears(made)
    found = targets(made)
    assert [str(t) for t in found].count(PACKED_LINEAR) == 1
    assert aten.bmm.default not in found


EVERY = LANES | SUMS | OTHERS | ELEMENTWISE | REPEATED | {"forms": forms}


@pytest.mark.parametrize("run", EVERY.values(), ids=EVERY)
def test_scores_are_the_models(captured: Callable[..., Path], run: Run) -> None:
    model, x = Products(run).eval(), torch.randn(9, FIELDS, WIDTH)
    path = captured(model, {"x": x}, buckets=[1, 4])
    with Runtime.load(path) as runtime, torch.no_grad():
        for rows in (1, 3, 9):
            got = runtime.run({"x": x[:rows]})["output"]
            np.testing.assert_allclose(got, model(x[:rows]).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.inductor
@pytest.mark.skipif(platform.machine() != "x86_64", reason="layers are packed on x86-64 alone")
@pytest.mark.parametrize("options", [{}, {"precision": "bf16"}], ids=["fp32", "bf16"])
def test_compiled_scores_are_the_models(captured: Callable[..., Path], options: Any) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        lists = torch.cat([(x[:, 0] @ w).relu() for w in m.list], 1)
        lanes = [lane(m, x).flatten(1) for lane in (*LANES.values(), forms)]
        return torch.cat([*lanes, lists], 1)

    model, x = Products(run).eval(), torch.randn(40, FIELDS, WIDTH)
    buckets = [4] if options else [1, 4, 16]
    path = captured(model, {"x": x[:4]}, buckets=buckets, compiler="inductor", **options)
    if options:
        return  # what it may differ by is told at capture
    with Runtime.load(path) as runtime, torch.no_grad():
        for scale in (1.0, -0.5):
            for weight in model.parameters():
                weight.mul_(scale)
            runtime.update_weights(model.state_dict())
            for rows in (1, 3, 16, 40):
                got = runtime.run({"x": x[:rows]})["output"]
                np.testing.assert_allclose(got, model(x[:rows]).numpy(), rtol=1e-4, atol=1e-5)


TABLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "by fields": lambda x, rows: torch.einsum("bfi,nfi->bn", x, rows),
    "each field": lambda x, rows: torch.einsum("bfi,nfi->bnf", x, rows).sum(2),
    "elements": lambda x, rows: (x.unsqueeze(1) * rows).sum((2, 3)),
    "elements of each field": lambda x, rows: (x.unsqueeze(1) * rows).sum(3).sum(2),
}


class Scored(nn.Module):
    """Fields of a user are compared with those of all items, which are looked up as well."""

    def __init__(self, run: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run
        self.items = nn.Embedding(50, FIELDS * WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        fields = self.items(ids).view(-1, FIELDS, WIDTH)
        return self.run(fields, self.items.weight.view(50, FIELDS, WIDTH))


@pytest.mark.parametrize("run", TABLES.values(), ids=TABLES)
def test_tables_are_stored_once(
    run: Callable[[Tensor, Tensor], Tensor], captured: Callable[..., Path]
) -> None:
    model, given = Scored(run).eval(), {"ids": torch.tensor([4, 49, 0])}
    artifact = captured(model, given)
    assert set(load_file(artifact / "weights.safetensors")) == {"items.weight"}
    with Runtime.load(artifact) as runtime, torch.no_grad():
        expected = model(**given).numpy()
        np.testing.assert_allclose(runtime.run(given)["output"], expected, 1e-4, 1e-5)
