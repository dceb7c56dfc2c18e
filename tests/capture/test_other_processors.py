"""Our functions in packages, as they are compiled on processors of other kinds than this one."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from recreplay.capture.compilers import toolchain
from recreplay.runtime.attention import attention_operator
from recreplay.runtime.packed_linear import pack
from recreplay.runtime.recurrent import gru_operator, lstm_operator

TORCH = Path(torch.__file__).parent
HEADERS = Path(toolchain.__file__).parent
INT, WHERE = ctypes.c_int64, ctypes.c_void_p
COLUMNS = 16  # of a block, without AVX-512
CAPABILITY = torch.backends.cpu.get_cpu_capability()
CALL = """
#include "packed_linear.cpp"
#include "byte_bags.cpp"
#include "row_bags.cpp"
#include "weighted_bags.cpp"
#include "jagged_bags.cpp"
#include "top_k.cpp"
#include "gru.cpp"
#include "lstm.cpp"
#include "attention.cpp"
extern "C" {
void best(const float *x, int64_t rows, int64_t columns, int64_t k, int largest, int64_t *out) {
  recreplay::best::rows(x, rows, columns, k, largest, out);
}
void steps(const float *gates, const float *first, const float *cells, const float *turned,
           const float *bias, float *out, int64_t rows, int64_t steps, int64_t hidden,
           int reverse) {
  using namespace recreplay::recurrent;
  const Layer layer{gates, first, cells, turned, bias, out, steps, hidden, reverse != 0};
  if (cells) run_all<Lstm>(layer, rows);
  else run_all<Gru>(layer, rows);
}
void attend(const float *query, const float *key, const float *value, float *out, int64_t batch,
            int64_t queries, int64_t keys, int64_t heads, int64_t dim, int causal, int repeats,
            const float *mask) {
  using namespace recreplay::heads;
  auto items = [&](const float *at, int64_t count) { /* or one, again and again */
    const int64_t item = heads * dim;
    return Items{at, repeats ? item : count * item, repeats ? 0 : item, dim};
  };
  const Attention all{items(query, queries), items(key, keys), items(value, keys), mask,
                      {0, 0, 0, 1}, out, queries * heads * dim, heads * dim, queries, keys, heads,
                      heads, dim, dim, 0.5f, NAN, causal != 0, true};
  run(all, batch);
}
void one_lane(const float *x, const float *packed, const float *bias, float *y, int64_t M,
              int64_t N, int64_t K, int relu) {
  recreplay::lane<float>(x, K, packed, bias, y, N, M, N, K, 0, N, false, relu);
}
void bags(const uint8_t *codes, const float *scales, const void *ids, int64_t count, int64_t rows,
          int64_t length, int64_t dim, float *out) {
  recreplay::bytes::run<int64_t>(codes, scales, ids, count, rows, length, dim, dim, false, out);
}
void row_bags(const float *rows, const void *ids, const void *first, const float *factors,
              int64_t count, int64_t bags, int64_t length, int64_t dim, float *out) {
  const recreplay::rows::Table table{rows, count, dim};
  auto run = factors ? recreplay::rows::run<true, int64_t> : recreplay::rows::run<false, int64_t>;
  run(table, ids, first, factors, false, bags, length, dim, false, out);
}
void jagged_bags(const float *rows, const int64_t *ids, const int64_t *ends, const void *spots,
                 int64_t count, int64_t dim, int64_t ids_count, int64_t features, int64_t bags,
                 float *out) {
  typedef recreplay::jagged::Spot Spot;
  recreplay::jagged::run(recreplay::jagged::Bags<int64_t>{
      rows, count, dim, ids, ids_count, ends, features * (bags + 2), (const Spot *)spots, features,
      bags, false, dim, out});
}
}
"""

needs_avx2 = pytest.mark.skipif(
    CAPABILITY not in ("AVX2", "AVX512") or toolchain.cxx_compiler() is None,
    reason="needs a C++ compiler, and a processor with AVX2",
)


@pytest.fixture(scope="module", params=["x86-64-v2", "haswell"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without AVX2, and with it; what this machine has is in every compiled artifact."""
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "kernels.cpp").write_text(CALL)
    compiler = toolchain.cxx_compiler()
    assert compiler is not None
    command = [compiler, "-O1", f"-march={request.param}", "-std=c++20", "-w", "-shared", "-fPIC"]
    command += ["-DRECREPLAY_THREADS=1", f"-DRECREPLAY_COLUMNS={COLUMNS}"]
    command += [
        "kernels.cpp",
        f"-I{HEADERS}",
        f"-I{TORCH / 'include'}",
        f"-L{TORCH / 'lib'}",
        "-ltorch_cpu",
        "-lc10",
    ]
    subprocess.run([*command, "-o", "kernels.so"], cwd=folder, check=True)
    return folder / "kernels.so"


@needs_avx2
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_products_are_those_of_the_weight_before_it_was_packed(
    library: Path, biased: bool, relu: bool
) -> None:
    call = ctypes.CDLL(str(library)).one_lane
    call.argtypes = [*[WHERE] * 4, *[INT] * 3, ctypes.c_int]
    torch.manual_seed(3)
    for rows in (1, 2, 3, 4, 7, 11, 130):
        for columns, length in (
            (1, 40),
            (4, 513),
            (15, 9),
            (33, 7),
            (64, 96),
            (200, 31),
            (130, 1100),
        ):
            x, weight = torch.randn(rows, length), torch.randn(columns, length)
            bias = torch.randn(columns) if biased else None
            packed, y = pack(weight, COLUMNS), torch.full((rows, columns), float("nan"))
            where = [None if t is None else t.data_ptr() for t in (x, packed, bias, y)]
            call(*where, rows, columns, length, relu)
            want = torch.nn.functional.linear(x, weight, bias)
            torch.testing.assert_close(y, torch.relu(want) if relu else want, rtol=1e-4, atol=1e-4)


@needs_avx2
def test_not_a_number_stays_one(library: Path) -> None:
    call = ctypes.CDLL(str(library)).one_lane
    call.argtypes = [*[WHERE] * 4, *[INT] * 3, ctypes.c_int]
    for columns in (2, 64, 70):
        for rows in (1, 3):
            x, packed = torch.full((rows, 8), float("nan")), pack(torch.randn(columns, 8), COLUMNS)
            y = torch.zeros(rows, columns)
            call(x.data_ptr(), packed.data_ptr(), None, y.data_ptr(), rows, columns, 8, True)
            assert y.isnan().all()


@needs_avx2
def test_bags_of_bytes_are_sums_of_rows(library: Path) -> None:
    call = ctypes.CDLL(str(library)).bags
    call.argtypes = [*[WHERE] * 3, *[INT] * 4, WHERE]
    torch.manual_seed(4)
    rows, bags, length = 50, 5, 9
    for dim in (1, 4, 20, 32, 100):
        codes = torch.randint(0, 256, (rows, dim), dtype=torch.uint8)
        scales, ids = torch.rand(rows, 2), torch.randint(0, rows, (bags, length))
        out = torch.zeros(bags, dim)
        where = (codes.data_ptr(), scales.data_ptr(), ids.data_ptr())
        call(*where, ids.numel(), rows, length, dim, out.data_ptr())
        table = codes * scales[:, :1] + scales[:, 1:]
        want = torch.nn.functional.embedding_bag(ids, table, mode="sum")
        torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-2)


@needs_avx2
def test_bags_of_rows_are_sums_of_rows(library: Path) -> None:
    call = ctypes.CDLL(str(library)).row_bags
    call.argtypes = [*[WHERE] * 4, *[INT] * 4, WHERE]
    torch.manual_seed(5)
    rows, bags = 50, 5
    for dim in (1, 4, 20, 32, 100, 140):
        for length in (1, 9, 40):
            table, ids = torch.randn(rows, dim), torch.randint(0, 30, (bags, length))
            first, out = torch.tensor([0, 0, 20, 20, 7]), torch.zeros(bags, dim)
            where = [t.data_ptr() for t in (table, ids, first)]
            for factors in (None, torch.randn(bags, length)):
                scales = None if factors is None else factors.data_ptr()
                call(*where, scales, rows, bags, length, dim, out.data_ptr())
                want = torch.nn.functional.embedding_bag(
                    ids + first[:, None], table, mode="sum", per_sample_weights=factors
                )
                torch.testing.assert_close(out, want)


@needs_avx2
def test_jagged_bags_are_sums_of_rows(library: Path) -> None:
    call = ctypes.CDLL(str(library)).jagged_bags
    call.argtypes = [*[WHERE] * 4, *[INT] * 5, WHERE]
    torch.manual_seed(6)
    rows, room = 50, 90
    ends = torch.tensor([[0, 0, 3, 41, 41, 60, room], [0, 9, 9, 9, 50, 90, room]])
    bags = 5
    for dim in (1, 4, 20, 32, 100, 140):
        table, ids = torch.randn(rows, dim), torch.randint(0, 30, (2, room))
        spots, out = torch.tensor([[0, 0, 20], [room, bags + 2, 3]]), torch.zeros(2 * bags, dim)
        where = [t.data_ptr() for t in (table, ids, ends, spots)]
        call(*where, rows, dim, 2 * room, 2, bags, out.data_ptr())
        want = [
            torch.nn.functional.embedding_bag(
                (ids[i] + first)[: ends[i, bags]],
                table,
                ends[i, : bags + 1],
                mode="sum",
                include_last_offset=True,
            )
            for i, first in enumerate((20, 3))
        ]
        torch.testing.assert_close(out, torch.cat(want))


@needs_avx2
@pytest.mark.parametrize("largest", [True, False])
def test_the_best_are_the_first_of_a_sorted_row(library: Path, largest: bool) -> None:
    call = ctypes.CDLL(str(library)).best
    call.argtypes = [WHERE, *[INT] * 3, ctypes.c_int, WHERE]
    torch.manual_seed(7)
    for columns, k in ((5, 5), (40, 1), (333, 20), (2000, 100)):
        for x in (
            torch.randn(3, columns),
            torch.randn(3, columns).round(),
            torch.zeros(3, columns),
        ):
            x[1, ::3] = float("nan")
            x[2, 1::5] = -float("inf")
            out = torch.zeros(3, k, dtype=torch.int64)
            call(x.data_ptr(), 3, columns, k, largest, out.data_ptr())
            want = torch.sort(x, dim=-1, descending=largest, stable=True).indices[:, :k]
            torch.testing.assert_close(out, want)


@needs_avx2
@pytest.mark.parametrize("gates_of_a_state", [3, 4], ids=["gru", "lstm"])
def test_steps_are_those_of_a_recurrent_layer(library: Path, gates_of_a_state: int) -> None:
    call = ctypes.CDLL(str(library)).steps
    call.argtypes = [*[WHERE] * 6, *[INT] * 3, ctypes.c_int]
    torch.manual_seed(8)
    for hidden in (16, 21, 64):
        for rows in (1, 3, 6):
            width = gates_of_a_state * hidden
            gates, first = torch.randn(rows, 5, width) * 4, torch.randn(rows, hidden)
            cells = torch.randn(rows, hidden) if gates_of_a_state == 4 else None
            turned, bias = torch.randn(hidden, width) / hidden**0.5, torch.randn(width)
            for reverse in (False, True):
                out = torch.zeros(rows, 5, hidden)
                tensors = (gates, first, cells, turned, bias, out)
                call(*[t if t is None else t.data_ptr() for t in tensors], rows, 5, hidden, reverse)
                if cells is None:
                    want = gru_operator()(gates, first, turned, bias, reverse)
                else:
                    want = lstm_operator()(gates, first, cells, turned, bias, reverse)
                torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)


@needs_avx2
@pytest.mark.parametrize("repeats", [False, True])
def test_attention_is_torchs(library: Path, repeats: bool) -> None:
    """With items of their own, and with one again and again, as `expand` has it."""
    call = ctypes.CDLL(str(library)).attend
    call.argtypes = [*[WHERE] * 4, *[INT] * 5, *[ctypes.c_int] * 2, WHERE]
    torch.manual_seed(9)
    for queries, keys, dim in ((1, 5, 3), (7, 7, 16), (100, 33, 20), (3, 130, 40)):
        for causal in (False, True):
            out = torch.zeros(2, queries, 3, dim)
            query, key, value = (
                torch.randn(2, 1 if repeats else n, 3, dim) for n in (queries, keys, keys)
            )
            where = [t.data_ptr() for t in (query, key, value, out)]
            given = [
                t.expand(-1, n, -1, -1) for t, n in ((query, queries), (key, keys), (value, keys))
            ]
            for mask in (None, torch.where(torch.rand(keys) < 0.3, -2.0, float("nan"))):
                call(*where, 2, queries, keys, 3, dim, causal, repeats, mask_of(mask))
                laid = None if mask is None else mask.expand(2, 3, queries, keys)
                if causal and laid is not None:
                    continue  # no model has both by parts
                options = (causal, 0.5, False, laid is not None, laid is not None)
                want = attention_operator()(*given, laid, *options)
                torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)


def mask_of(mask: Tensor | None) -> int | None:
    return None if mask is None else mask.data_ptr()
