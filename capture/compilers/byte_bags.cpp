/* `recreplay::byte_bags`: see recreplay.runtime.byte_bags. */
#ifdef __AVX2__
#include <immintrin.h>
#endif
#include "calls.h"
#include "shares.h"
#include "sums.h"
/* Compiled with -O1, as a package's wrapper is, which keeps small arrays of vectors in memory. */
#pragma GCC push_options
#pragma GCC optimize("O3")
namespace recreplay {
namespace bytes {
constexpr int64_t kAhead = 16; /* ids between the row that is read and the one that is fetched */

/* Spelt out, because GCC converts bytes one by one. */
template <int N>
RECREPLAY_INLINE typename Lanes<N>::Type widen(const uint8_t *codes) {
  typedef typename Lanes<N>::Type Vector;
#ifdef __AVX512F__
  if constexpr (N == 16)
    return (Vector)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(*(const __m128i_u *)codes));
#endif
#ifdef __AVX2__
  if constexpr (N == 8)
    return (Vector)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((__m128i *)codes)));
#endif
  if constexpr (N == 4)
    return Vector{(float)codes[0], (float)codes[1], (float)codes[2], (float)codes[3]};
  return Vector{} + (float)codes[0];
}

/* Bags [begin, end) of one length. */
template <typename Id> struct Bags {
  const uint8_t *codes;
  const float *scales; /* of each row, and what is added to it */
  const Id *ids;
  int64_t count, begin, end, length, dim, stride;
  float share;
  float *out;
};

/* V vectors of N floats of all rows, from column `at` on: see sums.h. */
template <int V, int N, typename Id>
static void add(const Bags<Id> &bags, int64_t at, int64_t last) {
  typedef typename Lanes<N>::Type Vector;
  const int64_t length = bags.length, dim = bags.dim;
  const uint8_t *codes = bags.codes + at;
  for (int64_t i = bags.begin; i < bags.end; i++) {
    const int64_t soon = std::min(bags.count, (i + 1) * length + kAhead);
    for (int64_t k = std::min(bags.count, i * length + kAhead); k < soon; k++) {
      __builtin_prefetch(bags.scales + 2 * bags.ids[k]);
      for (int64_t j = 0; j < V * N; j += 64) __builtin_prefetch(codes + bags.ids[k] * dim + j);
    }
    Vector sums[V] = {};
    float offset = 0;
    for (int64_t k = i * length; k < (i + 1) * length; k++) {
      const int64_t id = bags.ids[k];
      const uint8_t *row = codes + id * dim;
      const float scale = bags.scales[2 * id];
      offset += bags.scales[2 * id + 1];
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) sums[v] += widen<N>(row + (v + 1 < V ? v * N : last)) * scale;
    }
    float *to = bags.out + i * bags.stride + at;
#pragma GCC unroll 8
    for (int v = 0; v < V; v++)
      *(Vector *)(to + (v + 1 < V ? v * N : last)) = (sums[v] + offset) * bags.share;
  }
}

template <typename Id>
static void run(const uint8_t *codes, const float *scales, const void *given, int64_t count,
                int64_t rows, int64_t length, int64_t dim, int64_t stride, bool mean, float *out) {
  const Id *ids = (const Id *)given;
  for (int64_t i = 0; i < count; i++) /* requests were checked, ids that a model computes were not */
    if (ids[i] < 0 || ids[i] >= rows) throw std::out_of_range("an id is not below the rows");
  in_parts(count / length, kBagsOfPart, [&](int64_t begin, int64_t end) {
    const Bags<Id> bags{codes, scales, ids, count, begin, end, length, dim, stride,
                        mean ? 1.0f / length : 1.0f, out};
    in_columns(dim, [&](auto v, auto n, int64_t at, int64_t last) {
      add<v.value, n.value>(bags, at, last);
    });
  });
}
} // namespace bytes
} // namespace recreplay
#pragma GCC pop_options

RECREPLAY_CALLED
AOTITorchError aoti_torch_cpu_recreplay_byte_bags_out(
    AtenTensorHandle out, AtenTensorHandle codes, AtenTensorHandle scales, AtenTensorHandle ids,
    int64_t length, int32_t mean) {
  using namespace recreplay;
  return guarded("byte_bags", [&] {
    by_ids(ids, [&](auto id) {
      bytes::run<decltype(id)>(data<uint8_t>(codes), data<float>(scales), data<void>(ids),
                               numel(ids), sizes(codes)[0], length, sizes(codes)[1], stride(out),
                               mean, data<float>(out));
    });
  });
}
