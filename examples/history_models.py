"""Models that read histories, of the last years, by what their authors published of them.

    recreplay bench examples/history_models.py:hstu examples/history_models.py:one_trans \
        examples/history_models.py:longer examples/history_models.py:trans_act \
        examples/history_models.py:sdim --peers aotinductor,onnxruntime

`hstu` is a generative recommender (Zhai et al., 2024): attention by SiLU with a bias for time and
place, gated. `one_trans` reads a history and features by one transformer, with fewer queries in
each block (Zhang et al., 2025). `longer` merges the items of long histories and reads the latest of
them (Chai et al., 2025), `trans_act` the last 100 actions beside a candidate (Xia et al., 2023),
and `sdim` 512 of them as far as their hashes collide with the candidate's (Cao et al., 2022).
Weights are drawn, and sizes are such that one core answers in milliseconds.
"""

import torch
import torch.nn.functional as F
from feature_models import ROWS, Asked, built, drawn, look_up, tables
from torch import Tensor, nn

ITEMS = 50_000


class Unit(nn.Module):
    """`[B, N, D]`: pointwise attention over earlier items, gated, added to what it was given."""

    def __init__(self, size: int, heads: int, length: int, times: int = 128) -> None:
        super().__init__()
        self.heads, self.length = heads, length
        self.mixed, self.out = drawn(size, 4 * size), nn.Linear(size, size)
        self.by_place = nn.Parameter(torch.randn(2 * length - 1) / 50)
        self.by_time = nn.Parameter(torch.randn(times + 1) / 50)

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        gate, value, query, key = F.silu(F.layer_norm(x, x.shape[-1:]) @ self.mixed).chunk(4, -1)
        value, query, key = (p.unflatten(-1, (self.heads, -1)) for p in (value, query, key))
        weight = torch.einsum("bnhd,bmhd->bhnm", query, key) + self.bias(times).unsqueeze(1)
        weight = (F.silu(weight) / self.length).tril()
        read = torch.einsum("bhnm,bmhd->bnhd", weight, value).flatten(2)
        return self.out(gate * F.layer_norm(read, read.shape[-1:])) + x

    def bias(self, times: Tensor) -> Tensor:
        place = torch.arange(self.length)
        place = place.unsqueeze(0) - place.unsqueeze(1) + self.length - 1
        apart = (times.unsqueeze(2) - times.unsqueeze(1)).abs().clamp(min=1).log() / 0.301
        return self.by_place[place] + self.by_time[apart.long().clamp(max=len(self.by_time) - 1)]


class HSTU(nn.Module):
    """What a history of up to 64 items has become meets a candidate."""

    def __init__(self, size: int = 64, length: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.length = length
        self.items = nn.Embedding(ITEMS, size, padding_idx=0)
        self.places = nn.Embedding(length, size)
        self.units = nn.ModuleList(Unit(size, 2, length) for _ in range(layers))

    def forward(self, history: Tensor, times: Tensor, candidate: Tensor) -> Tensor:
        known = (history != 0).unsqueeze(-1).float()
        x = (self.items(history) * 8 + self.places.weight) * known
        for unit in self.units:
            x = unit(x, times) * known
        last = (history != 0).sum(1, keepdim=True) - 1
        user = x.gather(1, last.unsqueeze(-1).expand(-1, -1, x.shape[-1])).squeeze(1)
        return (F.normalize(user, dim=-1) * F.normalize(self.items(candidate), dim=-1)).sum(-1)

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        shape = batch, self.length
        items = torch.randint(1, ITEMS, shape, generator=draw)
        lengths = torch.randint(1, self.length + 1, (batch, 1), generator=draw)
        return {
            "history": torch.where(torch.arange(self.length) < lengths, items, 0),
            "times": 1_700_000_000 + torch.randint(0, 10_000, shape, generator=draw).cumsum(1),
            "candidate": torch.randint(1, ITEMS, (batch,), generator=draw),
        }


class Own(nn.Module):
    """A layer that all tokens of a history share, and one for each of the last `count` tokens."""

    def __init__(self, count: int, before: int, after: int) -> None:
        super().__init__()
        self.count, self.shared = count, nn.Linear(before, after, bias=False)
        self.own = drawn(count, before, after)

    def forward(self, x: Tensor) -> Tensor:
        own = torch.einsum("bnd,nde->bne", x[:, -self.count :], self.own)
        if x.shape[1] == self.count:
            return own
        return torch.cat([self.shared(x[:, : -self.count]), own], 1)


class Pyramid(nn.Module):
    """A causal block of attention of which the last `kept` tokens are queries."""

    def __init__(self, own: int, size: int, heads: int, kept: int) -> None:
        super().__init__()
        self.heads, self.kept = heads, kept
        self.norms = nn.ModuleList(nn.RMSNorm(size, eps=1e-6) for _ in range(2))
        self.inward = nn.ModuleList(Own(own, size, size) for _ in range(3))
        self.out = nn.Linear(size, size, bias=False)
        self.up, self.down = Own(own, size, 4 * size), Own(own, 4 * size, size)

    def forward(self, x: Tensor) -> Tensor:
        normed, last = self.norms[0](x), x[:, -self.kept :]
        parts = zip(self.inward, (normed[:, -self.kept :], normed, normed), strict=True)
        query, key, value = (
            layer(of).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer, of in parts
        )
        before = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()[-self.kept :]
        read = F.scaled_dot_product_attention(query, key, value, before)
        x = last + self.out(read.transpose(1, 2).flatten(2))
        return x + self.down(F.silu(self.up(self.norms[1](x))))


class OneTrans(Asked):
    """A history of 64 items and 24 features as eight tokens, and three tasks."""

    def __init__(self, size: int = 64, own: int = 8) -> None:
        super().__init__(history=(ITEMS, (64,)), actions=(8, (64,)), features=(ROWS, (24,)))
        self.items, self.acted = nn.Embedding(ITEMS, size), nn.Embedding(8, size)
        self.embed, self.tokens = tables(24, 16), nn.Linear(24 * 16, own * size)
        self.blocks = nn.Sequential(*(Pyramid(own, size, 4, kept) for kept in (48, 24, own)))
        self.out = nn.Sequential(nn.Linear(own * size, 128), nn.SiLU(), nn.Linear(128, 3))

    def forward(self, history: Tensor, actions: Tensor, features: Tensor) -> Tensor:
        seen = self.items(history) + self.acted(actions)
        own = self.tokens(torch.cat(look_up(self.embed, features), 1))
        x = torch.cat([seen, own.unflatten(1, (-1, seen.shape[-1]))], 1)
        return self.out(self.blocks(x).flatten(1)).sigmoid()


class Longer(Asked):
    """256 items, four of which become one token each, are read by the latest 32 tokens."""

    def __init__(self, size: int = 32, merged: int = 4, heads: int = 2, latest: int = 32) -> None:
        super().__init__(history=(ITEMS, (256,)), length=(257, ()), features=(ROWS, (10,)))
        wide = size * merged
        self.size, self.merged, self.heads, self.latest = size, merged, heads, latest
        self.items, self.embed = nn.Embedding(ITEMS, size), tables(10, size)
        self.inner = nn.TransformerEncoderLayer(
            size, 2, 2 * size, batch_first=True, norm_first=True
        )
        self.whole = nn.Linear(10 * size, 4 * wide)
        self.query, self.pair, self.read = (nn.Linear(wide, n * wide) for n in (1, 2, 1))
        self.norm = nn.LayerNorm(wide)
        self.block = nn.TransformerEncoderLayer(
            wide, 4, 2 * wide, batch_first=True, norm_first=True
        )
        self.out = nn.Linear(4 * wide, 1)

    def forward(self, history: Tensor, length: Tensor, features: Tensor) -> Tensor:
        count = history.shape[1] // self.merged
        groups = self.inner(self.items(history).view(-1, self.merged, self.size))
        seen = groups.view(-1, count, self.merged * self.size)
        whole = self.whole(torch.cat(look_up(self.embed, features), 1)).unflatten(1, (4, -1))
        known = torch.arange(count) * self.merged < length.unsqueeze(1)
        known = F.pad(known, (4, 0), value=True)[:, None, None]
        given = torch.cat([whole, seen[:, -self.latest :]], 1)
        key, value = self.pair(self.norm(torch.cat([whole, seen], 1))).chunk(2, -1)
        parts = (self.query(self.norm(given)), key, value)
        parts = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in parts)
        read = F.scaled_dot_product_attention(*parts, attn_mask=known)
        x = given + self.read(read.transpose(1, 2).flatten(2))
        # The first four, which alone are read, read all that come after them.
        after = nn.Transformer.generate_square_subsequent_mask(x.shape[1]).mT
        return self.out(self.block(x, after)[:, :4].flatten(1)).squeeze(-1).sigmoid()


class TransAct(Asked):
    """The last 100 actions, without those of the last hours, each beside the candidate."""

    def __init__(self, size: int = 32, latest: int = 10) -> None:
        super().__init__(
            actions=(20, (100,)),
            items=(ITEMS, (100,)),
            ago=(100_000, (100,)),
            candidate=(ITEMS, ()),
        )
        wide = 3 * size
        self.latest = latest
        self.acted, self.items = nn.Embedding(20, size), nn.Embedding(ITEMS, size)
        block = nn.TransformerEncoderLayer(wide, 2, 2 * wide, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.out = nn.Sequential(
            nn.Linear((latest + 1) * wide + size, 128), nn.ReLU(), nn.Linear(128, 4)
        )

    def forward(self, actions: Tensor, items: Tensor, ago: Tensor, candidate: Tensor) -> Tensor:
        wanted = self.items(candidate)
        beside = wanted.unsqueeze(1).expand(-1, items.shape[1], -1)
        x = torch.cat([self.acted(actions), self.items(items), beside], 2)
        left_out = (actions == 0) | (ago < 10_000)
        left_out = left_out & (torch.arange(items.shape[1]) > 0)  # one is always read
        x = self.blocks(x, src_key_padding_mask=left_out)
        x = x.masked_fill(left_out.unsqueeze(-1), 0.0)
        found = torch.cat([x[:, : self.latest].flatten(1), x.amax(1), wanted], 1)
        return self.out(found).sigmoid()


class SDIM(Asked):
    """512 items, read as far as 16 hashes of three bits are the candidate's."""

    def __init__(self, size: int = 32, hashes: int = 48, bits: int = 3) -> None:
        super().__init__(history=(ITEMS, (512,)), candidate=(ITEMS, ()))
        self.bits, self.items = bits, nn.Embedding(ITEMS, size)
        self.register_buffer("planes", torch.randn(size, hashes))
        self.register_buffer("powers", 2.0 ** torch.arange(bits))
        self.out = nn.Sequential(nn.Linear(2 * size, 64), nn.PReLU(), nn.Linear(64, 1))

    def codes(self, x: Tensor) -> Tensor:
        signs = (x @ self.planes > 0).float().unflatten(-1, (-1, self.bits))
        return (signs * self.powers).sum(-1).long()

    def forward(self, history: Tensor, candidate: Tensor) -> Tensor:
        seen, wanted = self.items(history), self.items(candidate)
        equal = self.codes(seen) == self.codes(wanted).unsqueeze(1)
        equal = equal & (history > 0).unsqueeze(-1)
        read = F.normalize(torch.einsum("blh,bld->bhd", equal.float(), seen), dim=-1).mean(1)
        return self.out(torch.cat([read, wanted], 1)).squeeze(-1).sigmoid()


hstu, one_trans, longer = built(HSTU), built(OneTrans), built(Longer)
trans_act, sdim = built(TransAct), built(SDIM)
