/* `recreplay::top_k`: see recreplay.runtime.top_k. */
#include "calls.h"
#include "shares.h"
#include "vector.h"
#ifdef __AVX2__
#include <immintrin.h>
#endif
/* Compiled with -O1, as a package's wrapper is, which keeps small arrays of vectors in memory. */
#pragma GCC push_options
#pragma GCC optimize("O3")
namespace recreplay {
namespace best {
constexpr int64_t kRowsOfPart = 4; /* from which on threads share them */

/* Numbers in the order of values, NaN the largest; in the opposite order unless `largest`. */
static inline Ints order(Vector values, bool largest) {
  Ints keys = (Ints)values;
  const Ints nan = values != values;
  keys ^= (keys >> 31) & INT32_MAX;
  keys -= keys == -1; /* -0 is 0 */
  keys = (keys & ~nan) | (nan & INT32_MAX);
  return largest ? keys : ~keys;
}

/* A bit for each number that is larger. */
static inline uint32_t larger(Ints keys, Ints than) {
#if defined(__AVX512F__)
  return _mm512_cmpgt_epi32_mask((__m512i)keys, (__m512i)than);
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)(__m256i)(keys > than));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kWide; i++) bits |= (uint32_t)(keys[i] > than[i]) << i;
  return bits;
#endif
}

/* The order and the place of a value as one number: of two equal ones the first is larger. */
static inline int64_t packed(int32_t key, int64_t place) {
  return (int64_t)((uint64_t)(uint32_t)key << 32 | (uint32_t)~(uint32_t)place);
}

/* A vector of keys, of which columns beyond the row are the worst. */
static inline Ints keys_at(const float *x, int64_t at, int64_t columns, bool largest) {
  if (at + kWide <= columns) return order(*(const Vector *)(x + at), largest);
  Ints keys = (Ints){} + INT32_MIN;
  Vector values = {};
  memcpy(&values, x + at, (columns - at) * sizeof(float));
  const Ints some = order(values, largest);
  for (int64_t i = 0; i < columns - at; i++) keys[i] = some[i];
  return keys;
}

/* A key than which k of a row are not less: the k-th of the largest keys of parts of it, of which
   there are more than k. */
static int32_t bound(const float *x, int64_t columns, int64_t k, bool largest, int32_t *most,
                     int64_t parts) {
  const int64_t vectors = columns / kWide, sets = parts / kWide;
  for (int64_t set = 0; set < sets; set++) {
    Ints found = (Ints){} + INT32_MIN;
    const int64_t end = vectors * (set + 1) / sets;
    for (int64_t v = vectors * set / sets; v < end; v++) {
      const Ints keys = order(*(const Vector *)(x + v * kWide), largest);
      found = keys > found ? keys : found;
    }
    memcpy(most + set * kWide, &found, sizeof found);
  }
  std::nth_element(most, most + k - 1, most + parts, std::greater<int32_t>());
  return most[k - 1];
}

/* The best k of one row. `found` has room for `room` of them, more than k, and `most` for `parts`.
   A value is looked at if it is no worse than k others are known to be, and where there is no room
   left, better than the worst of the best so far. */
static void row(const float *x, int64_t columns, int64_t k, bool largest, int64_t *found,
                int64_t room, int32_t *most, int64_t parts, int64_t *out) {
  int64_t count = 0;
  auto keep_best = [&]() {
    if (count > k) std::nth_element(found, found + k - 1, found + count, std::greater<int64_t>());
    count = std::min(count, k);
    return (int32_t)(found[k - 1] >> 32);
  };
  const int32_t from =
      columns < 2 * parts ? INT32_MIN : bound(x, columns, k, largest, most, parts);
  bool all = from == INT32_MIN;
  Ints below = (Ints){} + (all ? from : from - 1);
  for (int64_t at = 0; at < columns; at += kWide) {
    const Ints keys = keys_at(x, at, columns, largest);
    const uint32_t some = (uint32_t)((1ull << std::min(kWide, columns - at)) - 1);
    uint32_t bits = (all ? ~0u : larger(keys, below)) & some;
    if (!bits) continue;
    if (count + kWide > room) {
      below = (Ints){} + keep_best();
      all = false;
      bits = larger(keys, below) & some;
    }
    for (; bits; bits &= bits - 1) {
      const int i = __builtin_ctz(bits);
      found[count++] = packed(keys[i], at + i);
    }
  }
  keep_best();
  std::sort(found, found + k, std::greater<int64_t>());
  for (int64_t i = 0; i < k; i++) out[i] = (int64_t)~(uint32_t)found[i];
}

static void rows(const float *x, int64_t count, int64_t columns, int64_t k, bool largest,
                 int64_t *out) {
  const int64_t room = 2 * k + 4 * kWide, parts = (5 * k / 2 / kWide + 1) * kWide;
  in_parts(count, kRowsOfPart, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> found(room);
    std::vector<int32_t> most(parts);
    for (int64_t i = begin; i < end; i++)
      row(x + i * columns, columns, k, largest, found.data(), room, most.data(), parts,
          out + i * k);
  });
}
} // namespace best
} // namespace recreplay
#pragma GCC pop_options

RECREPLAY_CALLED
AOTITorchError aoti_torch_cpu_recreplay_top_k_out(AtenTensorHandle out, AtenTensorHandle x,
                                                  int64_t k, int32_t largest) {
  using namespace recreplay;
  return guarded("top_k", [&] {
    const int64_t columns = sizes(x)[dims(x) - 1], elements = numel(x);
    if (elements && k)
      best::rows(data<float>(x), elements / columns, columns, k, largest, data<int64_t>(out));
  });
}
