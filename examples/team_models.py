"""Models as teams write them.

    recreplay bench examples/team_models.py:mmoe examples/team_models.py:dcn_v2 \
        examples/team_models.py:catalogue examples/team_models.py:retrieval \
        examples/team_models.py:histories examples/team_models.py:sequence \
        examples/team_models.py:recurrent examples/team_models.py:interests \
        examples/team_models.py:reranker examples/team_models.py:fields \
        examples/team_models.py:auto_int examples/team_models.py:x_deep_fm \
        --peers aotinductor,onnxruntime_gather

`mmoe` has eight experts of layers with batch normalisation and three tasks, `dcn_v2` keeps the
weights of its cross layers in one parameter, `catalogue` scores every item of a catalogue by its
cosine, and `retrieval` gives the best 100 of them. `histories` pools what a user has seen, padded
by item 0, in three ways, `sequence` reads it by two blocks of attention (SASRec), `recurrent` by a
gated recurrent layer (GRU4Rec), and `interests` as four interests by additive attention (ComiRec).
`reranker` reads a list by torch's transformer (PRM), and `fields` has layers of its own for each
field, by `einsum` (RankMixer). In `auto_int` fields look at one another by attention that the model
writes out (AutoInt), and `x_deep_fm` multiplies them by one another, of which some MB come in
between (xDeepFM). Weights and statistics are drawn.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 1000


class Tables(nn.Module):
    """`features` ids of one row each, looked up and laid side by side: `[B, 16 * features]`."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(ROWS, 16) for _ in range(features))

    def forward(self, ids: list[Tensor]) -> Tensor:
        return torch.cat([table(i) for table, i in zip(self.tables, ids, strict=True)], 1)

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        return {
            f"ids_{i}": torch.randint(0, ROWS, (batch,), generator=draw)
            for i in range(len(self.tables))
        }


def mlp(*sizes: int) -> nn.Sequential:
    """Layers with batch normalisation and ReLU behind each."""
    layers = [
        (nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU())
        for before, after in pairwise(sizes)
    ]
    return nn.Sequential(*(part for layer in layers for part in layer))


def trained(model: nn.Module) -> nn.Module:
    """With statistics as of batches that were seen."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


class MMoE(nn.Module):
    """Experts that all tasks share, each weighing them by a gate of its own."""

    def __init__(self, experts: int = 8, tasks: int = 3) -> None:
        super().__init__()
        self.embed = Tables(16)
        self.experts = nn.ModuleList(mlp(256, 256, 128) for _ in range(experts))
        self.gates = nn.ModuleList(nn.Linear(256, experts) for _ in range(tasks))
        self.towers = nn.ModuleList(
            nn.Sequential(mlp(128, 64, 32), nn.Linear(32, 1)) for _ in range(tasks)
        )
        self.example_inputs = self.embed.example_inputs

    def forward(self, ids: list[Tensor]) -> dict[str, Tensor]:
        x = self.embed(ids)
        found = torch.stack([expert(x) for expert in self.experts], 1)
        mixed = [(gate(x).softmax(-1).unsqueeze(-1) * found).sum(1) for gate in self.gates]
        scores = [tower(m).sigmoid() for tower, m in zip(self.towers, mixed, strict=True)]
        return {f"task_{i}": score for i, score in enumerate(scores)}


class DCNv2(nn.Module):
    """Cross layers beside deep ones."""

    def __init__(self, features: int = 26, layers: int = 3) -> None:
        super().__init__()
        size = 16 * features
        self.embed = Tables(features)
        self.kernels = nn.Parameter(torch.randn(layers, size, size) / size)
        self.biases = nn.Parameter(torch.zeros(layers, size, 1))
        self.deep = mlp(size, 256, 128)
        self.out = nn.Linear(size + 128, 1)
        self.example_inputs = self.embed.example_inputs

    def forward(self, ids: list[Tensor]) -> Tensor:
        x = self.embed(ids)
        first = crossed = x.unsqueeze(2)
        for kernel, bias in zip(self.kernels, self.biases, strict=True):
            crossed = first * (torch.matmul(kernel, crossed) + bias) + crossed
        score: Tensor = self.out(torch.cat([crossed.squeeze(2), self.deep(x)], 1)).sigmoid()
        return score


class Catalogue(nn.Module):
    """A history of 20 items against all items, by cosine."""

    def __init__(self, items: int = 20_000) -> None:
        super().__init__()
        self.items = nn.Embedding(items, 64)
        self.user = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, history: Tensor) -> Tensor:
        user = self.user(self.items(history).mean(1))
        return F.normalize(user, dim=-1) @ F.normalize(self.items.weight, dim=-1).t()

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        items = self.items.num_embeddings
        return {"history": torch.randint(0, items, (batch, 20), generator=draw)}


class Retrieval(Catalogue):
    def forward(self, history: Tensor) -> dict[str, Tensor]:
        score, item = super().forward(history).topk(100)
        return {"score": score, "item": item}


class Histories(nn.Module):
    """A mean of what was clicked, a maximum of what was bought, attention over what was seen."""

    def __init__(self, items: int = 100_000, length: int = 50) -> None:
        super().__init__()
        self.length = length
        self.items = nn.Embedding(items, 32, padding_idx=0)
        self.top = nn.Sequential(nn.Linear(4 * 32, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, clicked: Tensor, bought: Tensor, seen: Tensor, item: Tensor) -> Tensor:
        candidate = self.items(item)
        known = (clicked != 0).float().unsqueeze(-1)
        mean = (self.items(clicked) * known).sum(1) / known.sum(1).clamp(min=1)
        most = self.items(bought).amax(1)
        rows = self.items(seen)
        weights = (rows * candidate.unsqueeze(1)).sum(-1).masked_fill(seen == 0, -1e9).softmax(-1)
        attended = (weights.unsqueeze(-1) * rows).sum(1)
        score: Tensor = self.top(torch.cat([mean, most, attended, candidate], 1)).sigmoid()
        return score

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        items = self.items.num_embeddings

        def history() -> Tensor:
            ids = torch.randint(1, items, (batch, self.length), generator=draw)
            lengths = torch.randint(1, self.length + 1, (batch, 1), generator=draw)
            return torch.where(torch.arange(self.length) < lengths, ids, 0)

        return {
            "clicked": history(),
            "bought": history(),
            "seen": history(),
            "item": torch.randint(1, items, (batch,), generator=draw),
        }


class Sequence(nn.Module):
    """The last of 50 positions, behind two blocks of causal attention, meets 20 candidates."""

    def __init__(self, items: int = 20_000, length: int = 50, size: int = 64) -> None:
        super().__init__()
        self.length = length
        self.items, self.places = nn.Embedding(items, size), nn.Embedding(length, size)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(size, 2, size, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(size)

    def forward(self, history: Tensor, candidates: Tensor) -> Tensor:
        before = torch.ones(self.length, self.length, dtype=torch.bool).triu(1)
        x = self.items(history) + self.places.weight
        for block in self.blocks:
            x = block(x, before)
        user = self.norm(x)[:, -1]
        return (self.items(candidates) * user.unsqueeze(1)).sum(-1)

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        items = self.items.num_embeddings
        history = torch.randint(0, items, (batch, self.length), generator=draw)
        candidates = torch.randint(0, items, (batch, 20), generator=draw)
        return {"history": history, "candidates": candidates}


class Recurrent(nn.Module):
    """The state after 20 items meets one."""

    def __init__(self, items: int = 20_000, size: int = 64) -> None:
        super().__init__()
        self.items = nn.Embedding(items, size)
        self.layer = nn.GRU(size, size, batch_first=True)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        states, _ = self.layer(self.items(history))
        return (states[:, -1] * self.items(item)).sum(-1).sigmoid()

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        items = self.items.num_embeddings
        history = torch.randint(0, items, (batch, 20), generator=draw)
        return {"history": history, "item": torch.randint(0, items, (batch,), generator=draw)}


class Interests(nn.Module):
    """Four interests of a history of 50 items, item 0 being padding, meet candidates."""

    def __init__(self, items: int = 20_000, size: int = 64) -> None:
        super().__init__()
        self.items = nn.Embedding(items, size, padding_idx=0)
        self.places = nn.Parameter(torch.randn(50, size) / 10)
        self.inner = nn.Parameter(torch.randn(size, 4 * size) / 8)
        self.outer = nn.Parameter(torch.randn(4 * size, 4) / 16)

    def forward(self, history: Tensor, candidates: Tensor) -> Tensor:
        seen = self.items(history)
        scores = torch.tanh((seen + self.places) @ self.inner) @ self.outer
        weights = scores.masked_fill((history == 0).unsqueeze(2), -1e9).softmax(1)
        interests = weights.transpose(1, 2) @ seen
        return torch.einsum("bnd,bkd->bnk", self.items(candidates), interests).amax(2)

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        items = self.items.num_embeddings
        history = torch.randint(0, items, (batch, 50), generator=draw)
        length = torch.randint(1, 51, (batch, 1), generator=draw)
        history = torch.where(torch.arange(50) < length, history, 0)
        candidates = torch.randint(1, items, (batch, 100), generator=draw)
        return {"history": history, "candidates": candidates}


class Reranker(nn.Module):
    """The items of a list look at one another."""

    def __init__(self, items: int = 20_000, size: int = 64, length: int = 30) -> None:
        super().__init__()
        self.items = nn.Embedding(items, size - 16)
        self.places = nn.Parameter(torch.randn(length, size) / 10)
        block = nn.TransformerEncoderLayer(
            size, 4, 2 * size, dropout=0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.out = nn.Linear(size, 1)

    def forward(self, items: Tensor, features: Tensor) -> Tensor:
        listed = torch.cat([self.items(items), features], -1) + self.places
        return self.out(self.blocks(listed)).squeeze(-1).softmax(-1)

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        shape = batch, len(self.places)
        return {
            "items": torch.randint(0, self.items.num_embeddings, shape, generator=draw),
            "features": torch.rand(*shape, 16, generator=draw),
        }


class Fields(Tables):
    """Two layers for each of 20 fields, beside what they read."""

    def __init__(self, features: int = 20) -> None:
        super().__init__(features)
        self.inner = nn.Parameter(torch.randn(features, 16, 64) / 4)
        self.bias = nn.Parameter(torch.randn(features, 64) / 10)
        self.outer = nn.Parameter(torch.randn(features, 64, 16) / 8)
        self.norm = nn.LayerNorm(16)
        self.out = nn.Linear(16 * features, 1)

    def forward(self, ids: list[Tensor]) -> Tensor:
        fields = super().forward(ids).unflatten(1, (-1, 16))
        wide = F.gelu(torch.einsum("bfi,fio->bfo", fields, self.inner) + self.bias)
        fields = self.norm(fields + torch.einsum("bfi,fio->bfo", wide, self.outer))
        return self.out(fields.flatten(1)).squeeze(1).sigmoid()


class AutoInt(Tables):
    """Three layers of attention of two heads over 20 fields."""

    def __init__(self, features: int = 20, heads: int = 2) -> None:
        super().__init__(features)
        self.heads = heads
        self.inward = nn.ModuleList(nn.Linear(16, 64, bias=False) for _ in range(3))
        self.out = nn.Linear(16 * features, 1)

    def forward(self, ids: list[Tensor]) -> Tensor:
        fields = super().forward(ids).unflatten(1, (-1, 16))
        for layer in self.inward:
            parts = layer(fields).unflatten(-1, (4, self.heads, -1)).transpose(1, 3)
            query, key, value, beside = parts.unbind(2)  # [B, heads, fields, values]
            shares = (query @ key.transpose(-1, -2)).softmax(-1)
            fields = (shares @ value + beside).transpose(1, 2).flatten(2).relu()
        return self.out(fields.flatten(1)).squeeze(1).sigmoid()


class XDeepFM(Tables):
    """Two layers that compress the products of fields with those of before, beside dense ones."""

    def __init__(self, features: int = 20, units: int = 64) -> None:
        super().__init__(features)
        sizes = (features * features, features * units)
        self.compress = nn.ModuleList(nn.Conv1d(size, units, 1) for size in sizes)
        self.deep = mlp(16 * features, 256, 128)
        self.out = nn.Linear(128 + units * len(sizes), 1)

    def forward(self, ids: list[Tensor]) -> Tensor:
        read = super().forward(ids)
        fields = crossed = read.unflatten(1, (-1, 16))
        found = [self.deep(read)]
        for layer in self.compress:
            products = torch.einsum("bhd,bmd->bhmd", crossed, fields)
            crossed = layer(products.flatten(1, 2)).relu()
            found.append(crossed.sum(-1))
        return self.out(torch.cat(found, 1)).squeeze(1).sigmoid()


def drawn(model: type[nn.Module]) -> Callable[[], nn.Module]:
    """A factory that draws the same weights every time."""

    def build() -> nn.Module:
        torch.manual_seed(0)
        return trained(model())

    return build


mmoe, dcn_v2 = drawn(MMoE), drawn(DCNv2)
catalogue, retrieval = drawn(Catalogue), drawn(Retrieval)
histories, sequence, recurrent = drawn(Histories), drawn(Sequence), drawn(Recurrent)
interests, reranker, fields = drawn(Interests), drawn(Reranker), drawn(Fields)
auto_int, x_deep_fm = drawn(AutoInt), drawn(XDeepFM)
