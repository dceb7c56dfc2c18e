"""Row masks on the GPU: written on the host, sent with the inputs, wherever these lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recreplay.capture import capture
from recreplay.capture.compilers.toolchain import inductor_problem
from recreplay.runtime import Runtime


class Rerank(nn.Module):
    """Attention among the candidates of a request, and the order of their scores."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.item, self.dense = nn.Embedding(100, 8), nn.Linear(4, 8)
        self.q, self.k, self.top = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, item: Tensor, dense: Tensor, mask: Tensor) -> dict[str, Tensor]:
        x = self.item(item) + self.dense(dense)
        near = (self.q(x) @ self.k(x).T).masked_fill(~mask, -torch.inf)
        score = self.top(near.softmax(1) @ x).squeeze(1)
        key = score.masked_fill(~mask, -torch.inf)
        return {"score": score, "order": torch.sort(key, descending=True, stable=True).indices}


def example(rows: int, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "item": torch.randint(0, 100, (rows,), generator=draw),
        "dense": torch.randn(rows, 4, generator=draw),
        "mask": torch.ones(rows, dtype=torch.bool),
    }


PROBLEM = inductor_problem("cuda")
COMPILED = pytest.param(
    "inductor", marks=pytest.mark.skipif(PROBLEM is not None, reason=f"{PROBLEM}")
)


@pytest.mark.parametrize("compiler", ["eager", COMPILED])
def test_requests_of_any_number_of_rows(compiler: str, tmp_path: Path) -> None:
    model = Rerank().eval()
    capture(
        model,
        example(6),
        out=tmp_path / "m.rr",
        buckets=[1, 8, 64],
        row_mask="mask",
        device="cuda",
        compiler=compiler,
    )
    with Runtime.load(tmp_path / "m.rr", lanes=2) as runtime:
        for turn, rows in enumerate([64, 1, 5, 8, 7, 33, 64, 2, 9, 63]):
            request = example(rows, turn)
            with torch.inference_mode():
                want = model(**request)
            del request["mask"]
            for side in ("cpu", "cuda"):
                got = runtime.run({name: t.to(side) for name, t in request.items()})
                np.testing.assert_allclose(got["score"], want["score"], rtol=1e-3, atol=1e-4)
                ranked = want["score"].numpy()[got["order"]]
                assert (np.diff(ranked) <= 1e-4).all()
                assert sorted(got["order"]) == list(range(rows))
