"""The Triton kernel of `grouped_lookup` against `embedding_bag`, run by Triton's interpreter.

Run by `test_grouped_lookup.py` in a process of its own: `TRITON_INTERPRET=1` is read on import.
"""

from __future__ import annotations

import os
import resource
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from grouped_cases import Feature, build, features

from recreplay.runtime.grouped_kernel import grouped_lookup_kernel
from recreplay.runtime.grouped_lookup import launch
from recreplay.runtime.lookup_slots import (
    SPLITS,
    LookupSlot,
    bags_of_a_program,
    for_threads,
    pack_slots,
)

CLOSE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.float16: {"rtol": 1e-3, "atol": 2e-2},
    torch.bfloat16: {"rtol": 1e-2, "atol": 1e-1},
}
STORED = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_mix_of_features_is_what_embedding_bag_gives(data: st.DataObject) -> None:
    batch = data.draw(st.sampled_from([1, 2, 3, 5, 9]))
    given_features = data.draw(st.lists(features(batch), min_size=1, max_size=3))
    dtype = data.draw(st.sampled_from(STORED))
    made = build(
        given_features,
        batch,
        split=data.draw(st.sampled_from(SPLITS)),
        seed=data.draw(st.integers(0, 10**6)),
        dtype=dtype,
        ids_dtype=data.draw(st.sampled_from([torch.int32, torch.int64])),
        bad=data.draw(st.sampled_from([0.0, 0.3])),
        widens=data.draw(st.booleans()),
    )
    got = launch(grouped_lookup_kernel, *made.arguments())
    assert got.dtype == (torch.float32 if made.widens else dtype)
    close = CLOSE[got.dtype]
    torch.testing.assert_close(got.view(batch, -1).float(), made.wanted, **close)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7, 8, 31, 64, 65, 127, 128, 129, 255, 256, 257])
@pytest.mark.parametrize(
    ("dtype", "split"), [(torch.float32, 1), (torch.float32, 8), (torch.uint8, 2)], ids=str
)
def test_every_width(width: int, dtype: torch.dtype, split: int) -> None:
    made = build([Feature(11, width, 6), Feature(5, 4, 1)], 3, split, seed=width, dtype=dtype)
    got = launch(grouped_lookup_kernel, *made.arguments())
    torch.testing.assert_close(got.view(3, -1), made.wanted)


def test_an_empty_batch_launches_nothing() -> None:
    made = build([Feature(11, 8, 6)], 0, 1, seed=0)
    # A grid of no programs is refused by CUDA; the interpreter runs none.
    assert launch(grouped_lookup_kernel, *made.arguments()).shape == (0,)


def test_offsets_that_are_wrong_stay_inside_of_the_room() -> None:
    made = build([Feature(9, 8, 0, (2, 3, 1), room=2)], 3, 1, seed=4)
    wrong = torch.tensor([-5, 2, 10**12, 3, 8])
    got = launch(grouped_lookup_kernel, *replace(made, offsets=wrong).arguments())
    table, ids = made.weights[:72].view(9, 8), made.ids
    wanted = torch.stack([table[ids[a:b]].sum(0) for a, b in ((0, 2), (2, 8), (8, 8))])
    torch.testing.assert_close(got.view(3, 8), wanted)


def test_rows_beyond_2_to_the_31_elements() -> None:
    """5 GB of address space of which only the rows that are read become memory."""
    rows, width = 40_000_000, 64
    weights = torch.empty(rows * width, dtype=torch.float16)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    table = weights.view(rows, width)
    ids = torch.tensor([rows - 1, rows, 2**31 // width + 1, 0])
    for i in (rows - 1, 2**31 // width + 1, 0):
        table[i] = torch.arange(width) + i % 7
    slot = LookupSlot(4, 0, rows, width, width, 0, 1, 1, False, 0, width)
    slots = for_threads(slot, 2, 1)
    got = launch(
        *(grouped_lookup_kernel, weights, ids, None, None, pack_slots(slots), None),
        *(4 * width, 4, bags_of_a_program(slots, 1), 1, False),
    )
    wanted = torch.stack([table[ids[0]], torch.zeros(width).half(), table[ids[2]], table[0]])
    torch.testing.assert_close(got.view(4, width), wanted)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KB
