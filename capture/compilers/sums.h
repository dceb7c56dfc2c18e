/* What rows.h, jagged_bags.h and byte_bags.h add rows up by. A package may have all of them. */
#ifndef RECREPLAY_SUMS
#define RECREPLAY_SUMS
#include "vector.h"
namespace recreplay {
constexpr int kMostSums = 8;   /* vectors of a row that are summed at once */
constexpr int64_t kLine = 16;  /* floats of a cache line */
constexpr int64_t kLines = 32; /* that are on their way: no fewer than that, or than four rows */
constexpr int64_t kBagsOfPart = 64;

template <int floats> constexpr int64_t rows_ahead() {
  return std::max<int64_t>(4, kLines / ((floats + kLine - 1) / kLine));
}

/* N floats at once, no more than the processor takes. */
template <int N> struct Lanes;
template <> struct Lanes<1> {
  typedef float Type __attribute__((may_alias));
};
template <> struct Lanes<4> {
  typedef float Type __attribute__((vector_size(16), aligned(4), may_alias));
};
template <> struct Lanes<8> {
  typedef float Type __attribute__((vector_size(32), aligned(4), may_alias));
};
template <> struct Lanes<16> {
  typedef float Type __attribute__((vector_size(64), aligned(4), may_alias));
};

template <int n> using Number = std::integral_constant<int, n>;

/* `add(V, N, at, last)` for all columns: V vectors of N floats, from column `at` on. The last one
   begins `last` floats behind, so that it ends with the row, and does some columns again. */
template <int N, int most, typename Add> static void by_vectors(int64_t dim, const Add &add) {
  int64_t at = 0, now;
  for (int64_t left = (dim + N - 1) / N; left > 0; left -= now, at += now * N) {
    now = std::min<int64_t>(left, most);
    const int64_t last = std::min((now - 1) * N, dim - N - at);
    auto of = [&](auto v) {
      if constexpr (v.value <= most)
        if (now == v.value) add(v, Number<N>(), at, last);
    };
    of(Number<1>()), of(Number<2>()), of(Number<3>()), of(Number<4>());
    of(Number<5>()), of(Number<6>()), of(Number<7>()), of(Number<8>());
  }
}

template <typename Add> static void in_columns(int64_t dim, const Add &add) {
  if (dim >= kWide) return by_vectors<kWide, kMostSums>(dim, add);
  if constexpr (kWide > 8)
    if (dim >= 8) return by_vectors<8, 2>(dim, add);
  if constexpr (kWide > 4)
    if (dim >= 4) return by_vectors<4, 2>(dim, add);
  by_vectors<1, 3>(dim, add);
}
} // namespace recreplay
#endif
