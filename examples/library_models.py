"""Models in forms that libraries of them have, which compilers find hard.

    recreplay bench examples/library_models.py:sdm examples/library_models.py:pnn \
        --peers compile,max_autotune,aotinductor,onnxruntime

`sdm` packs a session by its length for an LSTM, and meets it with what the user has liked for long
(Lv et al., 2019). `pnn` multiplies all pairs of fields, by one another and by a matrix for each
pair, as a sum over elements (Qu et al., 2016). Weights are drawn.
"""

import torch
from feature_models import ROWS, Asked, built, drawn, look_up, tables
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

ITEMS = 50_000


class SDM(nn.Module):
    """The last 20 items, read in order, and 50 of long ago meet a candidate."""

    def __init__(self, size: int = 64, session: int = 20, past: int = 50, known: int = 6) -> None:
        super().__init__()
        self.session, self.past = session, past
        self.items = nn.Embedding(ITEMS, size, padding_idx=0)
        self.tables = tables(known, 16)
        self.user = nn.Linear(16 * known, size)
        self.reader = nn.LSTM(size, size, batch_first=True)
        self.attention = nn.MultiheadAttention(size, 4, batch_first=True)
        self.liked, self.gate = nn.Linear(size, size), nn.Linear(3 * size, size)

    def forward(
        self, session: Tensor, length: Tensor, past: Tensor, user: Tensor, candidate: Tensor
    ) -> Tensor:
        asking = self.user(torch.cat(look_up(self.tables, user), 1)).tanh()
        packed = pack_padded_sequence(
            self.items(session), length.cpu(), batch_first=True, enforce_sorted=False
        )
        states, _ = self.reader(packed)
        states, _ = pad_packed_sequence(states, batch_first=True, total_length=self.session)
        nothing = torch.arange(self.session) >= length.unsqueeze(1)
        states, _ = self.attention(states, states, states, key_padding_mask=nothing)
        short = read(asking, states, nothing)
        long = self.liked(read(asking, self.items(past), past == 0)).tanh()
        gate = self.gate(torch.cat([asking, short, long], 1)).sigmoid()
        return ((gate * short + (1 - gate) * long) * self.items(candidate)).sum(1)

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(seed)

        def ids(most: int, *shape: int) -> Tensor:
            return torch.randint(1, most, (batch, *shape), generator=draw)

        length = torch.randint(1, self.session + 1, (batch,), generator=draw)
        held = torch.arange(self.session) < length.unsqueeze(1)
        return {
            "session": ids(ITEMS, self.session) * held,
            "length": length,
            "past": ids(ITEMS, self.past),
            "user": ids(ROWS, len(self.tables)),
            "candidate": ids(ITEMS),
        }


def read(asking: Tensor, items: Tensor, nothing: Tensor) -> Tensor:
    """`[B, N, D]` to `[B, D]`, each item by how much it is what is asked for."""
    scores = (items @ asking.unsqueeze(2)).squeeze(2).masked_fill(nothing, -1e9)
    return (scores.softmax(1).unsqueeze(1) @ items).squeeze(1)


class PNN(Asked):
    """26 fields: what they are, and how each pair of them goes together."""

    def __init__(self, fields: int = 26, size: int = 16) -> None:
        super().__init__(ids=(ROWS, (fields,)))
        self.tables = tables(fields, size)
        self.pairs = torch.combinations(torch.arange(fields)).T.tolist()
        count = len(self.pairs[0])
        self.kernel = drawn(size, count, size)
        self.deep = nn.Sequential(
            nn.Linear(fields * size + 2 * count, 256), nn.ReLU(), nn.Linear(256, 1)
        )

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.stack(look_up(self.tables, ids), 1)
        left, right = (x[:, side] for side in self.pairs)
        inner = (left * right).sum(-1)
        outer = ((left.unsqueeze(1) * self.kernel).sum(-1).mT * right).sum(-1)
        return self.deep(torch.cat([x.flatten(1), inner, outer], 1)).squeeze(1)


sdm, pnn = built(SDM), built(PNN)
