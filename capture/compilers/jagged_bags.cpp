/* `recreplay::jagged_bags`: see recreplay.runtime.jagged_bags. */
#include "calls.h"
#include "shares.h"
#include "sums.h"
/* Compiled with -O1, as a package's wrapper is, which keeps small arrays of vectors in memory. */
#pragma GCC push_options
#pragma GCC optimize("O3")
namespace recreplay {
namespace jagged {
struct Spot {
  int64_t ids, ends, first;
};

template <typename Id> struct Bags {
  const float *rows;
  int64_t count, dim; /* of the table */
  const Id *ids;
  int64_t ids_count;
  const Id *ends;
  int64_t ends_count;
  const Spot *spots;
  int64_t features, bags; /* of each feature */
  bool mean;
  int64_t stride;
  float *out;

  float share(int64_t length) const { return mean ? 1.0f / std::max<int64_t>(length, 1) : 1.0f; }
};

/* A request was checked. What a model computes was not: where bags end, and ids. */
template <typename Id> static void check(const Bags<Id> &all) {
  typedef std::make_unsigned_t<Id> Number;
  const Number limit = (Number)std::min<int64_t>(all.count, std::numeric_limits<Id>::max());
  Number bad = 0;
  for (const Spot *spot = all.spots; spot < all.spots + all.features; spot++) {
    if (spot->ids > all.ids_count || spot->ends + all.bags >= all.ends_count)
      throw std::out_of_range("a feature lies beyond its ids");
    const Id *ends = all.ends + spot->ends, *ids = all.ids + spot->ids;
    const int64_t begin = ends[0], end = ends[all.bags];
    bool falls = begin < 0 || end > all.ids_count - spot->ids;
    for (int64_t b = 0; b < all.bags; b++) falls |= ends[b + 1] < ends[b];
    if (falls) throw std::out_of_range("a bag ends where it should not");
    for (int64_t k = begin; k < end; k++)
      bad |= (Number)((Number)ids[k] + (Number)spot->first) >= limit;
  }
  if (bad) throw std::out_of_range("an id is not below the rows");
}

/* Adds up V vectors of N floats of each row, from column `at` on (see sums.h), for bags [begin, end). With every row one
   is fetched that is some ids on, and with a feature the first ones of the next: a processor sees
   some rows ahead by itself, which is not enough to wait for many at a time. */
template <int V, int N, typename Id>
static void add(const Bags<Id> &all, int64_t begin, int64_t end, int64_t at, int64_t rest) {
  typedef typename Lanes<N>::Type Vector;
  constexpr int64_t ahead = rows_ahead<V * N>();
  const int64_t dim = all.dim;
  auto fetch = [](const float *row) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int64_t j = 0; j < V * N; j += kLine) __builtin_prefetch(row + j);
  };
  auto fetch_first = [&](int64_t feature) {
    const Spot &spot = all.spots[feature];
    const Id *ends = all.ends + spot.ends, *ids = all.ids + spot.ids;
    const int64_t last = std::min<int64_t>(ends[all.bags], ends[0] + ahead);
    for (int64_t k = ends[0]; k < last; k++) fetch(all.rows + (spot.first + ids[k]) * dim + at);
  };
  for (int64_t i = begin; i < end;) {
    const int64_t feature = i / all.bags, until = std::min(end, (feature + 1) * all.bags);
    if (i == begin) fetch_first(feature);
    if (feature + 1 < all.features) fetch_first(feature + 1);
    const Spot &spot = all.spots[feature];
    const Id *ids = all.ids + spot.ids;
    const Id *ends = all.ends + spot.ends + i % all.bags;
    const float *rows = all.rows + spot.first * dim + at;
    const int64_t last = all.ends[spot.ends + all.bags] - ahead;
    for (; i < until; i++, ends++) {
      Vector sums[V] = {};
      const int64_t stop = ends[1];
      auto sum = [&](int64_t k) __attribute__((always_inline)) {
        const float *row = rows + ids[k] * dim;
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) sums[v] += *(const Vector *)(row + (v + 1 < V ? v * N : rest));
      };
      int64_t k = ends[0];
      for (; k < std::min(stop, last); k++) {
        fetch(rows + ids[k + ahead] * dim);
        sum(k);
      }
      for (; k < stop; k++) sum(k);
      const float share = all.share(stop - ends[0]);
      float *to = all.out + i * all.stride + at;
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) *(Vector *)(to + (v + 1 < V ? v * N : rest)) = sums[v] * share;
    }
  }
}

template <typename Id> static void run(const Bags<Id> &all) {
  check(all);
  in_parts(all.features * all.bags, kBagsOfPart, [&](int64_t begin, int64_t end) {
    in_columns(all.dim, [&](auto v, auto n, int64_t at, int64_t last) {
      add<v.value, n.value>(all, begin, end, at, last);
    });
  });
}
} // namespace jagged
} // namespace recreplay
#pragma GCC pop_options

RECREPLAY_CALLED
AOTITorchError aoti_torch_cpu_recreplay_jagged_bags_out(
    AtenTensorHandle out, AtenTensorHandle table, AtenTensorHandle ids, AtenTensorHandle ends,
    AtenTensorHandle spots, int64_t divisions, int32_t mean) {
  using namespace recreplay;
  return guarded("jagged_bags", [&] {
    by_ids(ids, [&](auto id) {
      typedef decltype(id) Id;
      jagged::run(jagged::Bags<Id>{data<float>(table), sizes(table)[0], sizes(table)[1],
                                   data<Id>(ids), numel(ids), data<Id>(ends), numel(ends),
                                   data<jagged::Spot>(spots), sizes(spots)[0],
                                   numel(ends) / divisions - 2, mean != 0, stride(out),
                                   data<float>(out)});
    });
  });
}
