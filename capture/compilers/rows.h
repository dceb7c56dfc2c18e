/* Bags of float32 rows, all of one length: see recreplay.runtime.row_bags. */
#ifndef RECREPLAY_ROWS
#define RECREPLAY_ROWS
#include "calls.h"
#include "shares.h"
#include "sums.h"
/* Compiled with -O1, as a package's wrapper is, which keeps small arrays of vectors in memory. */
#pragma GCC push_options
#pragma GCC optimize("O3")
namespace recreplay {
namespace rows {
struct Table {
  const float *rows;
  int64_t count;
  int64_t dim;
};

/* Refuses ids that no row has: a request was checked, what a model computes was not. */
template <typename Id>
static void check(const Table &table, const Id *ids, const Id *first, int64_t total,
                  int64_t length) {
  typedef std::make_unsigned_t<Id> Number;
  const Number limit = (Number)std::min<int64_t>(table.count, std::numeric_limits<Id>::max());
  Number bad = 0;
  for (int64_t i = 0; i < total; i++, ids += length) {
    const Number from = first ? (Number)first[i] : 0;
    for (int64_t k = 0; k < length; k++) bad |= (Number)((Number)ids[k] + from) >= limit;
  }
  if (bad) throw std::out_of_range("an id is not below the rows");
}

/* Bags [begin, end) of one length, of which rows are added up. */
template <typename Id> struct Bags {
  const Table &table;
  const Id *ids;
  const Id *first; /* where the ids of each bag count from, or null */
  const float *factors; /* of each id, or null */
  bool masks;           /* rows of factor 0 are left out, whatever is in them */
  int64_t begin, end, length, stride;
  float share;
  float *out;

  const float *from(int64_t bag) const {
    return table.rows + (first ? (int64_t)first[bag] * table.dim : 0);
  }
};

/* V vectors of N floats of all rows, from column `at` on: see sums.h.

   A processor sees some rows ahead by itself, which is not enough to wait for many at a time: with
   every row one is fetched that is some ids on, in this bag or the next, or where bags are short, in
   the same place some bags on. */
template <int V, int N, bool Weighted, typename Id>
static void add(const Bags<Id> &bags, int64_t at, int64_t last) {
  typedef typename Lanes<N>::Type Vector;
  const int64_t length = bags.length, dim = bags.table.dim;
  constexpr int64_t ahead = rows_ahead<V * N>();
  const bool inside = length > 2 * ahead;
  const int64_t on = inside ? 1 : (ahead + length - 1) / length;
  const int64_t split = inside ? length - ahead : 0;
  for (int64_t i = bags.begin; i < bags.end; i++) {
    const bool ends = i + on >= bags.end; /* fetches nothing that is new */
    const Id *ids = bags.ids + i * length;
    const Id *soon = ends ? ids : ids + (inside ? ahead : on * length);
    const float *factors = Weighted ? bags.factors + i * length : nullptr;
    const float *rows = bags.from(i) + at, *late = ends ? rows : bags.from(i + on) + at;
    Vector sums[V] = {};
    int64_t k = 0;
    auto until = [&](int64_t end, const float *next) __attribute__((always_inline)) {
      for (; k < end; k++) {
        const float *far = next + soon[k] * dim, *row = rows + ids[k] * dim;
#pragma GCC unroll 8
        for (int64_t j = 0; j < V * N; j += kLine) __builtin_prefetch(far + j);
        if (Weighted && bags.masks && factors[k] == 0) continue;
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
          const Vector read = *(const Vector *)(row + (v + 1 < V ? v * N : last));
          sums[v] += Weighted ? read * factors[k] : read;
        }
      }
    };
    until(split, rows);
    until(length, late);
    float *to = bags.out + i * bags.stride + at;
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) *(Vector *)(to + (v + 1 < V ? v * N : last)) = sums[v] * bags.share;
  }
}

template <bool Weighted, typename Id>
static void run(const Table &table, const void *ids, const void *first, const float *factors,
                bool masks, int64_t total, int64_t length, int64_t stride, bool mean, float *out) {
  in_parts(total, kBagsOfPart, [&](int64_t begin, int64_t end) {
    const Bags<Id> bags{table, (const Id *)ids, (const Id *)first, factors, masks, begin, end,
                        length, stride, mean ? 1.0f / length : 1.0f, out};
    check(bags.table, bags.ids + begin * length, bags.first ? bags.first + begin : nullptr,
          end - begin, length);
    in_columns(table.dim, [&](auto v, auto n, int64_t at, int64_t last) {
      add<v.value, n.value, Weighted>(bags, at, last);
    });
  });
}

/* `first` may be null, and `factors` where rows are not weighted. */
template <bool Weighted>
static AOTITorchError call(const char *name, AtenTensorHandle out, AtenTensorHandle table,
                           AtenTensorHandle ids, AtenTensorHandle *first, AtenTensorHandle factors,
                           bool masks, int64_t length, bool mean) {
  return guarded(name, [&] {
    const Table read{data<float>(table), sizes(table)[0], sizes(table)[1]};
    by_ids(ids, [&](auto id) {
      run<Weighted, decltype(id)>(read, data<void>(ids), first ? data<void>(*first) : nullptr,
                                  Weighted ? data<float>(factors) : nullptr, masks,
                                  numel(ids) / length, length, stride(out), mean,
                                  data<float>(out));
    });
  });
}
} // namespace rows
} // namespace recreplay
#pragma GCC pop_options
#endif
