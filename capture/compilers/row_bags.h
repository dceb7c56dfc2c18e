AOTITorchError aoti_torch_cpu_recreplay_row_bags_out(AtenTensorHandle, AtenTensorHandle,
                                                    AtenTensorHandle, AtenTensorHandle *, int64_t,
                                                    int32_t);
/* `recreplay::row_bags`: see recreplay.runtime.row_bags. Copied into a package's source behind
   `extern`, inside of extern "C". */
extern "C++" {
#include "shares.h"
#include "sums.h"
/* A package's wrapper is compiled with -O1, which keeps small arrays of vectors in memory. */
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
  int64_t begin, end, length, stride;
  float share;
  float *out;

  const float *from(int64_t bag) const {
    return table.rows + (first ? (int64_t)first[bag] * table.dim : 0);
  }
};

/* V vectors of all rows, from column `at` on.

   A processor sees some rows ahead by itself, which is not enough to wait for many at a time: with
   every row one is fetched that is some ids on, in this bag or the next, or where bags are short, in
   the same place some bags on. */
template <int V, typename Id> static void add(const Bags<Id> &bags, int64_t at) {
  const int64_t length = bags.length, dim = bags.table.dim;
  constexpr int64_t ahead = rows_ahead<V>();
  const bool inside = length > 2 * ahead;
  const int64_t on = inside ? 1 : (ahead + length - 1) / length;
  const int64_t split = inside ? length - ahead : 0;
  for (int64_t i = bags.begin; i < bags.end; i++) {
    const bool last = i + on >= bags.end; /* fetches nothing that is new */
    const Id *ids = bags.ids + i * length;
    const Id *soon = last ? ids : ids + (inside ? ahead : on * length);
    const float *rows = bags.from(i) + at, *late = last ? rows : bags.from(i + on) + at;
    Vector sums[V] = {};
    int64_t k = 0;
    auto until = [&](int64_t end, const float *next) __attribute__((always_inline)) {
      for (; k < end; k++) {
        const float *far = next + soon[k] * dim, *row = rows + ids[k] * dim;
#pragma GCC unroll 8
        for (int64_t j = 0; j < V * kWide; j += kLine) __builtin_prefetch(far + j);
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) sums[v] += *(const Vector *)(row + v * kWide);
      }
    };
    until(split, rows);
    until(length, late);
    float *to = bags.out + i * bags.stride + at;
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) *(Vector *)(to + v * kWide) = sums[v] * bags.share;
  }
}

template <typename Id> static void add_all(const Bags<Id> &bags) {
  static constexpr decltype(&add<1, Id>) of[kMostSums] = {add<1, Id>, add<2, Id>, add<3, Id>,
                                                          add<4, Id>, add<5, Id>, add<6, Id>,
                                                          add<7, Id>, add<8, Id>};
  const int64_t length = bags.length, dim = bags.table.dim;
  check(bags.table, bags.ids + bags.begin * length, bags.first ? bags.first + bags.begin : nullptr,
        bags.end - bags.begin, length);
  int64_t at = 0, now;
  for (int64_t left = dim / kWide; left > 0; left -= now, at += now * kWide) {
    now = std::min<int64_t>(left, kMostSums);
    of[now - 1](bags, at);
  }
  for (; at < dim; at++)
    for (int64_t i = bags.begin; i < bags.end; i++) {
      float sum = 0;
      for (int64_t k = 0; k < length; k++) sum += bags.from(i)[bags.ids[i * length + k] * dim + at];
      bags.out[i * bags.stride + at] = sum * bags.share;
    }
}

template <typename Id>
static void run(const Table &table, const void *ids, const void *first, int64_t total,
                int64_t length, int64_t stride, bool mean, float *out) {
  in_parts(total, kBagsOfPart, [&](int64_t begin, int64_t end) {
    add_all(Bags<Id>{table, (const Id *)ids, (const Id *)first, begin, end, length, stride,
                     mean ? 1.0f / length : 1.0f, out});
  });
}
} // namespace rows
} // namespace recreplay
#pragma GCC pop_options
} // extern "C++"

inline AOTITorchError aoti_torch_cpu_recreplay_row_bags_out(AtenTensorHandle out,
                                                           AtenTensorHandle table,
                                                           AtenTensorHandle ids,
                                                           AtenTensorHandle *first, int64_t length,
                                                           int32_t mean) {
  try {
    void *to, *rows, *given, *begins = nullptr;
    int64_t *shape, *strides, count;
    int32_t dtype;
    aoti_torch_get_data_ptr(out, &to);
    aoti_torch_get_data_ptr(table, &rows);
    aoti_torch_get_data_ptr(ids, &given);
    if (first) aoti_torch_get_data_ptr(*first, &begins);
    aoti_torch_get_sizes(table, &shape);
    aoti_torch_get_strides(out, &strides);
    aoti_torch_get_numel(ids, &count);
    aoti_torch_get_dtype(ids, &dtype);
    if (strides[1] != 1) throw std::runtime_error("columns of the result lie apart");
    const recreplay::rows::Table read{(const float *)rows, shape[0], shape[1]};
    auto run = dtype == aoti_torch_dtype_int64() ? recreplay::rows::run<int64_t>
                                                 : recreplay::rows::run<int32_t>;
    run(read, given, begins, count / length, length, strides[0], mean, (float *)to);
    return AOTI_TORCH_SUCCESS;
  } catch (const std::exception &error) {
    fprintf(stderr, "row_bags: %s\n", error.what());
    return AOTI_TORCH_FAILURE;
  }
}
