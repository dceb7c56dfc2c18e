/* Products with weights that lie as recreplay.runtime.packed_linear says, or in no blocks. */
#ifndef RECREPLAY_PRODUCTS
#define RECREPLAY_PRODUCTS
#include "shares.h"
#include "vector.h"
#ifdef __AVX2__
#include <immintrin.h>
#endif
/* Compiled with -O1, as a package's wrapper is, which keeps small arrays of vectors in memory. */
#pragma GCC push_options
#pragma GCC optimize("O3")
#ifdef __AVX512F__
#include "linear_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__)
#include "linear_avx2.h"
#endif
#include "linear_amx.h"
namespace at::native::cpublas {
/* oneDNN's batch-reduce product, as <ATen/native/CPUBlas.h> has it: C (+)= A B, row-major. */
void brgemm(int64_t M, int64_t N, int64_t K, int64_t ld_a, int64_t ld_b, int64_t ld_c,
            const bool add_C, const float *A, const float *B, float *C, bool is_vnni);
void brgemm(int64_t M, int64_t N, int64_t K, int64_t ld_a, int64_t ld_b, int64_t ld_c,
            const bool add_C, const c10::BFloat16 *A, const c10::BFloat16 *B, float *C,
            bool is_vnni);
} // namespace at::native::cpublas

namespace recreplay {
constexpr int64_t kColumns = RECREPLAY_COLUMNS; /* of a block */
constexpr int64_t kTask = 64;    /* columns, which are one block or several */
constexpr int64_t kRows = 128;   /* of x for which a block stays in the cache */
constexpr int64_t kWorthThreads = 1 << 18; /* multiply-adds */
constexpr int64_t kFar = 1 << 17; /* elements of a weight that is in no near cache */
constexpr int64_t kShort = 512;  /* rows of so few columns that are kept on the stack */

constexpr int64_t kNarrow = kVectorBytes / 16; /* columns that fill the product's registers badly */

static void finish(float *y, int64_t rows, int64_t width, int64_t stride, const float *bias,
                   bool relu) {
  for (int64_t i = 0; i < rows; i++, y += stride)
    for (int64_t j = 0; j < width; j++) {
      const float v = bias ? y[j] + bias[j] : y[j];
      y[j] = relu && v < 0 ? 0 : v; /* keeps NaN */
    }
}

/* The product of K values with a column that has zeros behind it. */
static inline float dot(const float *x, const float *column, int64_t K) {
  int64_t k = 0;
#ifdef __AVX512F__
  __m512 sum = _mm512_setzero_ps();
  for (; k + kWide <= K; k += kWide)
    sum = _mm512_fmadd_ps(_mm512_loadu_ps(x + k), _mm512_loadu_ps(column + k), sum);
  if (k < K) {
    const __mmask16 rest = (__mmask16)((1u << (K - k)) - 1);
    sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(rest, x + k), _mm512_loadu_ps(column + k), sum);
  }
  return _mm512_reduce_add_ps(sum);
#else
  Vector sum = {};
  for (; k + kWide <= K; k += kWide) sum += *(const Vector *)(x + k) * *(const Vector *)(column + k);
  float total = 0;
  for (int64_t i = 0; i < kWide; i++) total += sum[i];
  for (; k < K; k++) total += x[k] * column[k];
  return total;
#endif
}

/* A few columns: a dot product for each row and column. */
static void narrow_lane(const float *x, int64_t ldx, const float *packed, const float *bias,
                        float *y, int64_t stride, int64_t M, int64_t N, int64_t K, int64_t begin,
                        int64_t rows_of_weight, bool made, bool relu) {
  float columns[kNarrow * (kShort + kWide)];
  const int64_t step = (K + kWide - 1) / kWide * kWide;
  for (int64_t n = 0; n < N; n++) {
    const int64_t base = made ? 0 : (begin + n) / kColumns * kColumns;
    const int64_t ld = made ? rows_of_weight : std::min(kColumns, rows_of_weight - base);
    for (int64_t k = 0; k < K; k++)
      columns[n * step + k] = packed[base * K + k * ld + begin + n - base];
    for (int64_t k = K; k < step; k++) columns[n * step + k] = 0;
  }
  for (int64_t i = 0; i < M; i++, x += ldx, y += stride)
    for (int64_t n = 0; n < N; n++) {
      const float v = dot(x, columns + n * step, K) + (bias ? bias[n] : 0);
      y[n] = relu && v < 0 ? 0 : v;
    }
}

/* Rows that lie in one another, as one that is repeated does, which oneDNN does not take. */
static void repeated(const float *x, int64_t ldx, const float *block, float *y, int64_t stride,
                     int64_t M, int64_t N, int64_t K, int64_t ld) {
  for (int64_t i = 0; i < M; i++, x += ldx, y += stride) {
    std::fill(y, y + N, 0.0f);
    for (int64_t k = 0; k < K; k++)
      for (int64_t j = 0; j < N; j++) y[j] += x[k] * block[k * ld + j];
  }
}

/* y [M, to - from] = x [M, K] by rows [from, to) of a packed weight of `total` rows, or by columns of
   a weight [K, total] that a request `made`. With AVX-512, oneDNN's product is as fast as ours once
   its code and the weight are in a cache, and slower by 1.1 to 1.8 times at 4 to 16 rows when they
   are not. With AVX2 ours is faster by 1.2 to 1.8 times up to 32 rows of layers of 256 columns and
   more, and within 8 % of it at 128 (one Zen 3 core). By AMX a product of bfloat16 is as fast as that
   of float32 with one row, and 3 to 7 times as fast with 16 and more; oneDNN's primitive over packed
   weights takes 1.2 to 7 times as long (256 to 256 and 1,024 to 512, one Xeon core). */
template <typename T>
static void product(const T *x, int64_t ldx, const T *packed, const float *bias, float *y,
                    int64_t stride, int64_t M, int64_t from, int64_t to, int64_t K, int64_t total,
                    bool made, bool relu) {
  constexpr int64_t pair = sizeof(T) == 2 ? 2 : 1;
  int64_t now; /* columns that are done at once: some of a block, or several blocks */
  for (int64_t at = from; at < to; at += now, y += now, bias += bias ? now : 0) {
    const int64_t base = at / kColumns * kColumns;
    const int64_t ld = made ? total : std::min(kColumns, total - base);
    const T *block = packed + (made ? at : base * K + (at - base) * pair);
    now = std::min(base + kColumns, to) - at;
#ifdef RECREPLAY_AMX
    if constexpr (sizeof(T) == 2)
      if (amx::granted()) {
        amx::product(x, block, bias, y, stride, M, now, K, ld, relu);
        continue;
      }
#endif
#ifdef __AVX512F__
    if constexpr (sizeof(T) == 4 || kPairs) {
      static constexpr decltype(&tiles<1, T>) of[] = {tiles<1, T>, tiles<2, T>, tiles<3, T>,
                                                      tiles<4, T>};
      of[(now - 1) / kWide](x, ldx, block, bias, y, stride, M, now, K, ld, relu);
      continue;
    }
#elif defined(__AVX2__) && defined(__FMA__)
    if constexpr (sizeof(T) == 4 && kColumns == 16) {
      const bool far = total * K >= kFar;
      if (now < 16) {
        auto of = now > 8 ? tiles<2, true> : tiles<1, true>;
        of(x, ldx, block, bias, y, stride, M, now, K, ld, 0, far, relu);
      } else {
        now = (to - at) / 16 * 16;
        blocks(x, ldx, block, bias, y, stride, M, now / 16, K, ld, made ? 16 : 16 * K, far, relu);
      }
      continue;
    }
#endif
    const bool again = ldx < K || ld < now;
    if constexpr (sizeof(T) == 4)
      if (again) repeated(x, ldx, block, y, stride, M, now, K, ld);
    if (!again)
      at::native::cpublas::brgemm(M, now, K, ldx, ld, stride, false, x, block, y, sizeof(T) == 2);
    if (bias || relu) finish(y, M, now, stride, bias, relu);
  }
}

/* One lane: x [M, K] by rows [begin, begin + N) of a weight, to y [M, N]; rows of the one lie `ldx`
   apart, of the other `stride`. A task is up to kRows rows by kTask columns. */
template <typename T>
static void lane(const T *x, int64_t ldx, const T *packed, const float *bias, float *y,
                 int64_t stride, int64_t M, int64_t N, int64_t K, int64_t begin, int64_t total,
                 bool made, bool relu) {
  if constexpr (sizeof(T) == 4)
    if (N <= kNarrow && K <= kShort)
      return narrow_lane(x, ldx, packed, bias, y, stride, M, N, K, begin, total, made, relu);
  const int64_t first = begin / kTask, columns = (begin + N - 1) / kTask - first + 1;
  const int64_t tasks = (M + kRows - 1) / kRows * columns;
  in_parts(tasks, M * N * K >= kWorthThreads ? 1 : tasks + 1, [&](int64_t at, int64_t end) {
    for (; at < end; at++) {
      const int64_t row = at / columns * kRows, rows = std::min(kRows, M - row);
      const int64_t base = (first + at % columns) * kTask;
      const int64_t from = std::max(begin, base), to = std::min(begin + N, base + kTask);
      product(x + row * ldx, ldx, packed, bias ? bias + from - begin : bias,
              y + row * stride + from - begin, stride, rows, from, to, K, total, made, relu);
    }
  });
}
} // namespace recreplay
#pragma GCC pop_options
#endif
