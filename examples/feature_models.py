"""Models of many features, of the last years, by what their authors published of them.

    recreplay bench examples/feature_models.py:wukong examples/feature_models.py:rank_mixer \
        examples/feature_models.py:pep_net examples/feature_models.py:star \
        --peers aotinductor,onnxruntime

`wukong` stacks factorisation machines (Zhang et al., 2024), and `rank_mixer` mixes tokens without
attention, each with layers of its own (Zhu et al., 2025). `pep_net` scales features and layers by
gates (Chang et al., 2023), and `star` multiplies weights of a domain with those of all (Sheng et
al., 2021). Weights are drawn, and sizes are such that one core answers in milliseconds.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 10_000


class Asked(nn.Module):
    """A model with inputs of ids: of each, how many there are, and what shape a row of it has."""

    def __init__(self, **ids: tuple[int, tuple[int, ...]]) -> None:
        super().__init__()
        self.ids = ids

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        return {
            name: torch.randint(0, most, (batch, *shape), generator=draw)
            for name, (most, shape) in self.ids.items()
        }


def tables(count: int, size: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Embedding(ROWS, size) for _ in range(count))


def look_up(found: nn.ModuleList, ids: Tensor) -> list[Tensor]:
    return [table(ids[:, i]) for i, table in enumerate(found)]


def drawn(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) / shape[-2] ** 0.5)


class Compressed(nn.Module):
    """`[B, N, D]` to `[B, M, D]`: each row of the result is a sum of all, weighted."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.weight = drawn(before, after)

    def forward(self, x: Tensor) -> Tensor:
        return (x.mT @ self.weight).mT


class Interaction(nn.Module):
    """A factorisation machine and a linear compression, side by side, around a residual."""

    def __init__(self, before: int, size: int, each: int, rank: int = 8) -> None:
        super().__init__()
        self.size, self.ranked = size, Compressed(before, rank)
        self.deep = nn.Sequential(
            nn.LayerNorm(before * rank),
            nn.Linear(before * rank, 128),
            nn.ReLU(),
            nn.Linear(128, each * size),
        )
        self.linear = Compressed(before, each)
        self.beside = nn.Identity() if before == 2 * each else Compressed(before, 2 * each)
        self.norm = nn.LayerNorm(size)

    def forward(self, x: Tensor) -> Tensor:
        products = (x @ self.ranked(x).mT).flatten(1)
        machine = self.deep(products).unflatten(1, (-1, self.size))
        return self.norm(torch.cat([machine, self.linear(x)], 1) + self.beside(x))


class Wukong(nn.Module):
    """26 features of three ids and 13 numbers."""

    def __init__(self, features: int = 26, size: int = 32, each: int = 16) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(ROWS, size, mode="sum") for _ in range(features))
        self.dense = nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, size))
        widths = (features + 1, 2 * each, 2 * each)
        self.layers = nn.Sequential(*(Interaction(width, size, each) for width in widths))
        self.out = nn.Sequential(nn.Linear(2 * each * size, 256), nn.ReLU(), nn.Linear(256, 1))

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        x = torch.stack([self.dense(dense), *look_up(self.bags, ids)], 1)
        return self.out(self.layers(x).flatten(1)).squeeze(-1).sigmoid()

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, ROWS, (batch, len(self.bags), 3), generator=draw)
        return {"ids": ids, "dense": torch.randn(batch, 13, generator=draw)}


class Mixer(nn.Module):
    """Each of T tokens gets a piece of every other, and has layers of its own."""

    def __init__(self, tokens: int, size: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.inner, self.inner_bias = drawn(tokens, size, 4 * size), drawn(tokens, 4 * size)
        self.outer, self.outer_bias = drawn(tokens, 4 * size, size), drawn(tokens, size)
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        mixed = x.unflatten(2, (self.tokens, -1)).transpose(1, 2).flatten(2)
        x = self.norms[0](mixed + x)
        wide = F.gelu(torch.einsum("btd,tdk->btk", x, self.inner) + self.inner_bias)
        return self.norms[1](torch.einsum("btk,tkd->btd", wide, self.outer) + self.outer_bias + x)


class RankMixer(Asked):
    """32 features as 16 tokens, and two tasks."""

    def __init__(self, tokens: int = 16, size: int = 128) -> None:
        super().__init__(ids=(ROWS, (32,)))
        self.embed = tables(32, 16)
        self.inward = nn.ModuleList(nn.Linear(32, size) for _ in range(tokens))
        self.blocks = nn.Sequential(*(Mixer(tokens, size) for _ in range(2)))
        self.out = nn.Linear(size, 2)

    def forward(self, ids: Tensor) -> Tensor:
        pieces = torch.cat(look_up(self.embed, ids), 1).chunk(len(self.inward), 1)
        x = torch.stack([layer(p) for layer, p in zip(self.inward, pieces, strict=True)], 1)
        return self.out(self.blocks(x).mean(1)).sigmoid()


class Gate(nn.Sequential):
    """From 0 to 2."""

    def __init__(self, before: int, after: int) -> None:
        layers = (nn.Linear(before, after), nn.ReLU(), nn.Linear(after, after), nn.Sigmoid())
        super().__init__(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class PEPNet(Asked):
    """30 features, scaled by the domain; four tasks, whose layers user, item and author scale."""

    def __init__(
        self, size: int = 16, hidden: tuple[int, ...] = (256, 128), tasks: int = 4
    ) -> None:
        super().__init__(ids=(ROWS, (30,)), domain=(10, ()), who=(ROWS, (3,)))
        wide = 30 * size
        self.embed, self.who = nn.Embedding(ROWS, size), tables(3, size)
        self.domains = nn.Embedding(10, size)
        self.scale, widths = Gate(wide + size, wide), (wide, *hidden)
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.Linear(*pair) for pair in pairwise((*widths, 1))) for _ in range(tasks)
        )
        self.gates = nn.ModuleList(
            nn.ModuleList(Gate(wide + 3 * size, width) for width in widths) for _ in range(tasks)
        )

    def forward(self, ids: Tensor, domain: Tensor, who: Tensor) -> Tensor:
        x = self.embed(ids).flatten(1)
        x = x * self.scale(torch.cat([self.domains(domain), x], 1))
        prior = torch.cat([*look_up(self.who, who), x], 1)
        return torch.cat(
            [self.task(x, prior, *task) for task in zip(self.layers, self.gates, strict=True)], 1
        )

    def task(self, x: Tensor, prior: Tensor, layers: nn.ModuleList, gates: nn.ModuleList) -> Tensor:
        *inner, last = zip(layers, gates, strict=True)
        for layer, gate in inner:
            x = layer(x * gate(prior)).relu()
        return last[0](x * last[1](prior)).sigmoid()


class STAR(Asked):
    """20 features and five domains, whose weights are multiplied with those of all."""

    def __init__(self, size: int = 16, domains: int = 5) -> None:
        super().__init__(ids=(ROWS, (20,)), domain=(5, ()))
        self.embed, widths = nn.Embedding(ROWS, size), list(pairwise((20 * size, 256, 128, 1)))
        self.shared = nn.ParameterList(drawn(*pair) for pair in widths)
        self.own = nn.ParameterList(1 + drawn(domains, *pair) for pair in widths)
        self.biases = nn.ParameterList(drawn(domains, after) for _, after in widths)
        self.norms = nn.ModuleList(nn.BatchNorm1d(20 * size) for _ in range(domains))

    def forward(self, ids: Tensor, domain: Tensor) -> Tensor:
        x = self.embed(ids).flatten(1)
        scores = torch.cat([self.score(x, at) for at in range(len(self.norms))], 1)
        return scores.gather(1, domain.unsqueeze(1)).squeeze(1).sigmoid()

    def score(self, x: Tensor, at: int) -> Tensor:
        x = self.norms[at](x)
        for shared, own, bias in zip(self.shared, self.own, self.biases, strict=True):
            x = (x.relu() if bias is not self.biases[0] else x) @ (shared * own[at]) + bias[at]
        return x


def built(model: type[nn.Module]) -> Callable[[], nn.Module]:
    """A factory that draws the same weights every time."""

    def build() -> nn.Module:
        torch.manual_seed(0)
        return model().eval()

    return build


wukong, rank_mixer, pep_net, star = built(Wukong), built(RankMixer), built(PEPNet), built(STAR)
