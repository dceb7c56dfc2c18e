"""Scaled dot product attention by a function of ours: which, and that it is torch's."""

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
from recreplay.capture.rewrites.attend import attend
from recreplay.capture.specialise import specialise
from recreplay.runtime import Runtime
from recreplay.runtime.aten import ATTENTION
from recreplay.runtime.graph import read_graph

Run = Callable[[Any, Tensor, Tensor], Tensor]
aten = torch.ops.aten
ITEMS, WIDTH = 19, 24


def of_heads(x: Tensor, heads: int = 3) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def sdpa(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, **options)


class Attention(nn.Module):
    """`run` of items `x` `[B, ITEMS, WIDTH]`, of which those after `n` are padding."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.run = run
        self.layer = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.bias = nn.Parameter(torch.randn(3, ITEMS, ITEMS))
        self.one = nn.Parameter(torch.randn(1))
        options: Any = {"dim_feedforward": 32, "dropout": 0.0, "batch_first": True}
        self.block = nn.TransformerEncoderLayer(WIDTH, 2, **options)

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        return self.run(self, x, torch.arange(ITEMS) >= n.unsqueeze(1))


def by_parts(x: Tensor, mask: Callable[[Tensor], Tensor], scale: float = 0.5) -> Tensor:
    q, k, v = of_heads(x), of_heads(x * 2), of_heads(x + 1)
    found: Tensor = mask(q @ k.transpose(-1, -2) * scale).softmax(-1) @ v
    return found


def behind(x: Tensor) -> Tensor:
    return torch.ones(ITEMS, ITEMS, dtype=torch.bool).tril()


OURS: dict[str, Run] = {
    "heads": lambda m, x, p: sdpa(of_heads(x), of_heads(x * 2), of_heads(x + 1)),
    "turned back": lambda m, x, p: sdpa(*3 * [of_heads(x)]).transpose(1, 2).flatten(2),
    "causal": lambda m, x, p: sdpa(*3 * [of_heads(x)], is_causal=True),
    "scaled": lambda m, x, p: sdpa(*3 * [of_heads(x)], scale=0.7),
    "fewer queries": lambda m, x, p: sdpa(of_heads(x[:, -2:]), *2 * [of_heads(x)]),
    "fewer keys, causal": lambda m, x, p: sdpa(
        of_heads(x), *2 * [of_heads(x[:, :7])], is_causal=True
    ),
    "narrow values": lambda m, x, p: sdpa(*2 * [of_heads(x)], of_heads(x[..., :6])),
    "groups of heads": lambda m, x, p: sdpa(
        of_heads(x, 6), *2 * [of_heads(x[..., :8], 2)], enable_gqa=True
    ),
    "no heads": lambda m, x, p: sdpa(x, x * 2, x),
    "a bias": lambda m, x, p: sdpa(*3 * [of_heads(x)], attn_mask=m.bias),
    "flags": lambda m, x, p: sdpa(*3 * [of_heads(x)], attn_mask=~p[:, None, None]),
    "flags without heads": lambda m, x, p: sdpa(x, x, x, attn_mask=~p.unsqueeze(1)),
    "flags of places": lambda m, x, p: sdpa(*3 * [of_heads(x)], attn_mask=behind(x)),
    "a layer": lambda m, x, p: m.layer(x, x, x, need_weights=False)[0],
    "a padded layer": lambda m, x, p: m.layer(
        x, x, x, need_weights=False, key_padding_mask=p, attn_mask=~behind(x)
    )[0].masked_fill(p.unsqueeze(2), 0),
    "a block": lambda m, x, p: m.block(x).flatten(1),
    "parts": lambda m, x, p: by_parts(x, lambda s: s),
    "parts, turned back": lambda m, x, p: by_parts(x, lambda s: s).transpose(1, 2).flatten(2),
    "parts by einsum": lambda m, x, p: torch.einsum(
        "bhij,bhjd->bhid",
        torch.einsum("bhid,bhjd->bhij", of_heads(x), of_heads(x * 2)).mul(0.4).softmax(-1),
        of_heads(x + 1),
    ),
    "parts of items by einsum": lambda m, x, p: torch.einsum(
        "bhij,bjhd->bihd",
        torch.einsum("bihd,bjhd->bhij", *2 * [x.unflatten(-1, (3, -1))])
        .masked_fill(p[:, None, None], -1e9)
        .softmax(-1),
        (x + 1).unflatten(-1, (3, -1)),
    ).flatten(2),
    "parts without heads": lambda m, x, p: torch.bmm(
        torch.bmm(x, (x * 2).transpose(1, 2)).div(3.0).softmax(2), x + 1
    ),
    "parts of fewer queries": lambda m, x, p: (x[:, -2:] @ x.transpose(1, 2)).softmax(-1) @ x,
    "parts, scaled twice": lambda m, x, p: by_parts(x * 0.3, lambda s: s / torch.tensor(4.0)),
    "parts of one number more": lambda m, x, p: by_parts(x, lambda s: s + m.one),
    "parts and a bias": lambda m, x, p: by_parts(x, lambda s: m.bias + s),
    "parts and two": lambda m, x, p: by_parts(x, lambda s: s + m.bias + p[:, None, None] * -9.0),
    "parts and flags": lambda m, x, p: by_parts(
        x, lambda s: s.masked_fill(p[:, None, None], -1e9), 1.0
    ),
    "parts and flags of places": lambda m, x, p: by_parts(
        x, lambda s: torch.where(behind(x), s, torch.tensor(-(2.0**32) + 1))
    ),
    "parts and other scores": lambda m, x, p: by_parts(
        x, lambda s: torch.where(p[:, None, None], m.bias, s)
    ),
    "parts none of which may count": lambda m, x, p: by_parts(
        x, lambda s: s.masked_fill(p[:, None, None], float("-inf"))
    ),
    "parts less infinity": lambda m, x, p: by_parts(
        x, lambda s: s + torch.where(p[:, None, None], float("-inf"), 0.0)
    ),
    "parts of which some are no number": lambda m, x, p: by_parts(
        x, lambda s: s.masked_fill(p[:, None, None], float("nan"))
    ),
    "parts and other scores, some no number": lambda m, x, p: by_parts(
        x, lambda s: torch.where(p[:, None, None], x[:, None, :, :1].sqrt(), s)
    ),
    "a layer with its weights": lambda m, x, p: m.layer(x, x, x)[0],
    "a padded layer with its weights": lambda m, x, p: m.layer(
        x, x, x, key_padding_mask=p, attn_mask=m.bias[0]
    )[0],
}
OTHERS: dict[str, Run] = {
    "doubles": lambda m, x, p: sdpa(*3 * [of_heads(x.double())]).float(),
    "more dimensions": lambda m, x, p: sdpa(*3 * [of_heads(x).unsqueeze(2)]),
    "weights": lambda m, x, p: m.layer(x, x, x, need_weights=True)[1],
    "parts of no keys": lambda m, x, p: (x @ x[:, :0].transpose(1, 2)).softmax(-1) @ x[:, :0],
    "parts of doubles": lambda m, x, p: by_parts(x.double(), lambda s: s).float(),
    "parts over queries": lambda m, x, p: (x @ x.transpose(1, 2)).softmax(1) @ x,
    "parts and a scaled bias": lambda m, x, p: by_parts(x, lambda s: (s + m.bias) * 2),
    "parts and a bias and flags": lambda m, x, p: by_parts(
        x, lambda s: (s + m.bias).masked_fill(p[:, None, None], -1e9)
    ),
    "parts and no number": lambda m, x, p: by_parts(x, torch.relu),
    "parts by heads of their own": lambda m, x, p: (
        (x @ x.transpose(1, 2)).softmax(-1).unsqueeze(1) @ of_heads(x)
    ),
}


def request(rows: int) -> dict[str, Tensor]:
    return {"x": torch.randn(rows, ITEMS, WIDTH), "n": torch.randint(1, ITEMS + 1, (rows,))}


def targets(model: nn.Module) -> list[str]:
    program = specialise(ingest(model.eval(), request(4)), 4)
    attend(program)
    return [str(n.target) for n in program.graph.nodes if n.op == "call_function"]


class All(Attention):
    """Several kinds, in one program: most of what a test takes is tracing one."""

    def __init__(self, kinds: dict[str, Run]) -> None:
        super().__init__(OURS["heads"])
        self.kinds = kinds

    def forward(self, x: Tensor, n: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        padding = torch.arange(ITEMS) >= n.unsqueeze(1)
        # Of items of their own, as scores that several read stay scores.
        runs = enumerate(self.kinds.values())
        return {f"o{i}": run(self, x * (1 - i / 100), padding) for i, run in runs}


def test_attention_is_ours() -> None:
    found = targets(All(OURS))
    assert found.count(ATTENTION) == len(OURS)
    assert "aten.scaled_dot_product_attention.default" not in found


def test_other_attention_stays() -> None:
    assert ATTENTION not in targets(All(OTHERS))


def test_attention_over_attention_is_computed_once() -> None:
    def run(m: Any, x: Tensor, p: Tensor) -> Tensor:
        for _ in range(3):
            x = (x @ x.transpose(1, 2)).softmax(-1) @ x
        return x

    found = targets(Attention(run))
    assert found.count(ATTENTION) == 3
    assert not {"aten.matmul.default", "aten.softmax.int"} & set(found)


@pytest.mark.inductor
def test_compiled_attention_is_torchs(captured: Callable[..., Path]) -> None:
    model = All(OURS).eval()
    path = captured(model, request(3), buckets=[40], compiler="inductor", threads=2)
    found = [o.target for o in read_graph(path)[40].captured.operators]
    assert found.count(ATTENTION) == len(OURS)
    with Runtime.load(path) as runtime, torch.no_grad():
        for rows in (1, 3, 40, 50):
            given: Any = request(rows)
            given["n"][0] = 0  # no item counts
            got = runtime.run(given)
            for name, want in model(**given).items():
                np.testing.assert_allclose(got[name], want.numpy(), rtol=1e-4, atol=1e-5)
        given["x"][-1, 3, 4] = float("nan")
        plain = OURS["heads"](model, given["x"], given["n"]).isnan().numpy()
        np.testing.assert_array_equal(np.isnan(runtime.run(given)["o0"]), plain)
        assert plain.any()


@pytest.mark.inductor
def test_long_sequences(captured: Callable[..., Path]) -> None:
    """More queries than are done at once."""

    class Long(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return sdpa(*3 * [of_heads(x, 2)], is_causal=True)

    path = captured(Long().eval(), {"x": torch.randn(2, 250, 20)}, buckets=[2], compiler="inductor")
    x = torch.randn(2, 250, 20)
    with Runtime.load(path) as runtime:
        want = Long()(x).numpy()
        np.testing.assert_allclose(runtime.run({"x": x})["output"], want, rtol=1e-4, atol=1e-5)
