/* What row_bags.h and jagged_bags.h add rows up by. A package may have both. */
#ifndef RECREPLAY_SUMS
#define RECREPLAY_SUMS
#include "vector.h"
namespace recreplay {
constexpr int kMostSums = 8;   /* vectors of a row that are summed at once */
constexpr int64_t kLine = 16;  /* floats of a cache line */
constexpr int64_t kLines = 32; /* that are on their way: no fewer than that, or than four rows */
constexpr int64_t kBagsOfPart = 64;

template <int V> constexpr int64_t rows_ahead() {
  return std::max<int64_t>(4, kLines * kLine / (V * kWide));
}
} // namespace recreplay
#endif
