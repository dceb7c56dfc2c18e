"""Looked-up rows that are multiplied by a factor each and added up: which, and that the sums are
those of torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recreplay.capture.ingest import ingest
from recreplay.capture.rewrites.weigh_rows import weigh_rows
from recreplay.capture.specialise import specialise
from recreplay.runtime import Runtime
from recreplay.runtime.aten import WEIGHTED_BAGS
from recreplay.runtime.errors import ReplayError
from recreplay.runtime.graph import read_graph

ROWS, LENGTH = 1 << 16, 16  # a table of a megabyte


class Run(nn.Module):
    """`forward` by a function of this module and ids `x` `[B, LENGTH]`."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.table = nn.Embedding(ROWS, width)
        self.small = nn.Embedding(9, width)
        self.weights = nn.Embedding(ROWS, 1)
        self.decay = nn.Parameter(torch.rand(LENGTH))
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def bag(model: Any, x: Tensor, **options: Any) -> Tensor:
    return F.embedding_bag(x, model.table.weight, **options)


# With 0 as padding, but where factors are no mask.
SUMS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "mask of numbers": lambda m, x: (m.table(x) * (x != 0).float().unsqueeze(2)).sum(1),
    "mask": lambda m, x: ((x != 0).unsqueeze(-1) * m.table(x)).sum(dim=-2),
    "wide mask": lambda m, x: (m.table(x) * (x != 0)[..., None].expand(-1, -1, 4)).sum(1),
    "filled": lambda m, x: m.table(x).masked_fill((x == 0).unsqueeze(-1), 0.0).sum(1),
    "picked": lambda m, x: torch.where((x != 0)[..., None], m.table(x), 0.0).sum(1),
    "left": lambda m, x: torch.where((x == 0)[..., None], 0.0, m.table(x)).sum(1),
    "looked up": lambda m, x: (m.weights(x) * m.table(x)).sum(1),
    "by place": lambda m, x: (m.table(x) * m.decay[:, None]).sum(1),
    "mean": lambda m, x: (m.table(x) * m.decay[:, None]).mean(1),
    "product": lambda m, x: torch.bmm(m.weights(x).mT.softmax(-1), m.table(x)).squeeze(1),
    "matmul": lambda m, x: ((x != 0).float().unsqueeze(1) @ m.table(x)).squeeze(1),
    "one for all": lambda m, x: (m.decay.view(1, 1, -1) @ m.table(x)).squeeze(1),
    "einsum": lambda m, x: torch.einsum("bl,bld->bd", (x != 0).float(), m.table(x)),
    "einsum, turned": lambda m, x: torch.einsum("ijk, ij -> ik", m.table(x), x / ROWS),
    "bag of weights": lambda m, x: bag(m, x, mode="sum", per_sample_weights=x / ROWS),
    "padded bag": lambda m, x: bag(m, x, mode="sum", padding_idx=0),
    "bag padded by the last": lambda m, x: bag(m, x, mode="sum", padding_idx=-1),
    "mean of a padded bag": lambda m, x: bag(m, x, mode="mean", padding_idx=-ROWS),
}
OTHERS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "read twice": lambda m, x: ((e := m.table(x)) * (x != 0)[..., None]).sum(1) + e.sum(1),
    "in parts": lambda m, x: sum(m.table(x).split(2, dim=1)).sum(1),  # type: ignore[arg-type]
    "by column": lambda m, x: (m.table(x) * m.table.weight[0]).sum(1),
    "other sums": lambda m, x: (m.table(x) * (x != 0)[..., None]).sum(2),
    "kept": lambda m, x: (m.table(x) * (x != 0)[..., None]).sum(1, keepdim=True),
    "filled with one": lambda m, x: m.table(x).masked_fill((x == 0)[..., None], 1.0).sum(1),
    "more rows": lambda m, x: m.table(x[:, :2]).float().mT @ m.table(x[:, 2:4]),
    "several queries": lambda m, x: torch.ones(x.shape[0], 2, LENGTH) @ m.table(x),
    "the same rows for all": lambda m, x: x.float().unsqueeze(1) @ m.table(x[:1] * 0),
    "doubles": lambda m, x: (m.table(x) * m.decay[:, None].double()).sum(1).float(),
    "einsum, stretched": lambda m, x: torch.einsum("bl,bld->bd", x.float(), m.table(x[:, :1])),
    "short": lambda m, x: (m.table(x[:, 1:]) * (x[:, 1:] != 0)[..., None]).sum(1),
    "a small table": lambda m, x: (m.small(x % 9) * (x != 0)[..., None]).sum(1),
    "none": lambda m, x: (m.table(x[:, :0]) * (x[:, :0] != 0)[..., None]).sum(1),
    "product of none": lambda m, x: x[:, None, :0].float() @ m.table(x[:, :0]),
    "einsum of none": lambda m, x: torch.einsum("bl,bld->bd", x[:, :0].float(), m.table(x[:, :0])),
    "einsum of all": lambda m, x: torch.einsum("bl,bld->bld", x.float(), m.table(x)),
    "most of a padded bag": lambda m, x: bag(m, x, mode="max", padding_idx=0),
    "a made table": lambda m, x: F.embedding_bag(x, m.table.weight * x.sum(), padding_idx=0),
}


def weighed(run: Callable[[Any, Tensor], Tensor], lowered: tuple[str, ...] = ()) -> int:
    made = specialise(ingest(Run(run).eval(), {"x": torch.randint(0, ROWS, (4, LENGTH))}), 4)
    weigh_rows(made, lowered)
    return sum(str(n.target) == WEIGHTED_BAGS for n in made.graph.nodes)


@pytest.mark.parametrize("run", SUMS.values(), ids=SUMS)
def test_which_sums(run: Callable[[Any, Tensor], Tensor]) -> None:
    assert weighed(run) == 1
    assert weighed(run, ("table.weight",)) == 0


@pytest.mark.parametrize("run", OTHERS.values(), ids=OTHERS)
def test_what_stays(run: Callable[[Any, Tensor], Tensor]) -> None:
    assert weighed(run) == 0


class All(nn.Module):
    """Widths that vectors divide and do not, rows without any that counts, a user's rows."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.ModuleList(Run(run, 4) for run in SUMS.values())
        self.wide = nn.ModuleList(Run(SUMS["mask"], width) for width in (16, 33, 70, 150))

    def forward(self, x: Tensor, user: Tensor) -> dict[str, Tensor]:
        found = {name: run(x) for name, run in zip(SUMS, self.each, strict=True)}
        wide = [run(x if i % 2 else user) for i, run in enumerate(self.wide)]
        return found | {"wide": torch.cat(wide, 1)}


@pytest.mark.inductor
def test_compiled(captured: Callable[..., Path]) -> None:
    model = All().eval()
    example = {"x": torch.randint(0, ROWS, (4, LENGTH)), "user": torch.ones(4, LENGTH).int()}
    path = captured(
        model, example, buckets=[1, 90], compiler="inductor", threads=2, user_inputs=["user"]
    )
    operators = [o.target for o in read_graph(path)[90].captured.operators]
    assert operators.count(WEIGHTED_BAGS) == len(SUMS) + len(model.wide)
    with Runtime.load(path) as runtime, torch.no_grad():
        for padding in (1.0, float("nan"), float("inf")):
            for run in (*model.each, *model.wide):
                run.table.weight[0] = padding
            runtime.update_weights(model.state_dict())
            for rows in (1, 5, 90):
                x = torch.randint(0, 3, (rows, LENGTH)) * (ROWS - 1) // 2  # first, middle and last
                x[0] = 0
                user = torch.randint(0, ROWS, (1, LENGTH)).int()
                got = runtime.run({"x": x, "user": user})
                for name, want in model(x, user.expand(rows, -1)).items():
                    np.testing.assert_allclose(got[name], want.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.inductor
def test_an_id_that_the_model_computes_beyond_its_table(captured: Callable[..., Path]) -> None:
    model = Run(lambda m, x: (m.table(x * (ROWS // 4)) * (x != 0)[..., None]).sum(1)).eval()
    example = {"x": torch.randint(0, 4, (4, LENGTH))}
    path = captured(model, example, buckets=[4], compiler="inductor")
    with Runtime.load(path) as runtime, torch.no_grad():
        for bad in (5, -1):
            request = example["x"].clone()
            request[2, 1] = bad
            with pytest.raises(ReplayError, match=r"^replaying bucket 4 failed"):
                runtime.run({"x": request})
            want = model(example["x"]).numpy()
            np.testing.assert_allclose(runtime.run(example)["output"], want, rtol=1e-5, atol=1e-6)
