/* What row_bags.h and jagged_bags.h add rows up by. A package may have both. */
#ifndef RECREPLAY_SUMS
#define RECREPLAY_SUMS
namespace recreplay {
/* Wider sums than the processor has registers for are kept in memory. */
#if defined(__AVX512F__)
constexpr int kBytesOfSum = 64;
#elif defined(__AVX2__)
constexpr int kBytesOfSum = 32;
#else
constexpr int kBytesOfSum = 16;
#endif
typedef float Sum __attribute__((vector_size(kBytesOfSum), aligned(4), may_alias));
constexpr int64_t kOfSum = sizeof(Sum) / sizeof(float);
constexpr int kMostSums = 8;   /* vectors of a row that are summed at once */
constexpr int64_t kLine = 16;  /* floats of a cache line */
constexpr int64_t kLines = 32; /* that are on their way: no fewer than that, or than four rows */
constexpr int64_t kBagsOfPart = 64;

template <int V> constexpr int64_t rows_ahead() {
  return std::max<int64_t>(4, kLines * kLine / (V * kOfSum));
}
} // namespace recreplay
#endif
