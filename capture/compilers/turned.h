/* Items of a list turned, so that products find those of one value side by side; the largest of a
   vector, and its sum. */
#ifndef RECREPLAY_TURNED
#define RECREPLAY_TURNED
#include "exponential.h"
#ifdef __AVX2__
#include <immintrin.h>
#endif
#pragma GCC push_options
#pragma GCC optimize("O3")
namespace recreplay {
#if defined(__AVX512F__)
RECREPLAY_INLINE float largest(Vector v) { return _mm512_reduce_max_ps((__m512)v); }
RECREPLAY_INLINE float total(Vector v) { return _mm512_reduce_add_ps((__m512)v); }

/* Rows of a square of 16 become its columns, by halves of it that change places: pairs of rows
   exchange values, pairs of values, and quarters twice. */
RECREPLAY_INLINE void turn_square(Vector *given) {
  __m512 *rows = (__m512 *)given, pairs[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    pairs[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
    pairs[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++)
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      const __m512d low = (__m512d)pairs[4 * i + half], high = (__m512d)pairs[4 * i + 2 + half];
      rows[4 * i + 2 * half] = (__m512)_mm512_unpacklo_pd(low, high);
      rows[4 * i + 2 * half + 1] = (__m512)_mm512_unpackhi_pd(low, high);
    }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++)
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      const __m512 low = rows[8 * half + i], high = rows[8 * half + 4 + i];
      pairs[8 * half + i] = _mm512_shuffle_f32x4(low, high, 0x88);
      pairs[8 * half + 4 + i] = _mm512_shuffle_f32x4(low, high, 0xdd);
    }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    rows[i] = _mm512_shuffle_f32x4(pairs[i], pairs[8 + i], 0x88);
    rows[8 + i] = _mm512_shuffle_f32x4(pairs[i], pairs[8 + i], 0xdd);
  }
}

/* The first `count` values from `at` on, and zeros. */
RECREPLAY_INLINE Vector some(const float *at, int64_t count) {
  return (Vector)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), at);
}
#else
RECREPLAY_INLINE float largest(Vector v) {
  float found = v[0];
  for (int i = 1; i < kWide; i++) found = v[i] > found ? v[i] : found;
  return found;
}

RECREPLAY_INLINE float total(Vector v) {
  float sum = 0;
  for (int i = 0; i < kWide; i++) sum += v[i];
  return sum;
}

RECREPLAY_INLINE void turn_square(Vector *rows) {
  float values[kWide][kWide];
  memcpy(values, rows, sizeof values);
  for (int i = 0; i < kWide; i++)
    for (int j = 0; j < kWide; j++) rows[i][j] = values[j][i];
}

RECREPLAY_INLINE Vector some(const float *at, int64_t count) {
  float values[kWide] = {};
  memcpy(values, at, count * sizeof(float));
  return load(values);
}
#endif

/* `[dim, room]` of `scale` times `[items, dim]`, whose items lie `apart`; zeros behind the last. */
static inline void turn(const float *from, int64_t apart, int64_t items, int64_t dim, float *to,
                        int64_t room, float scale) {
  for (int64_t n = 0; n < items; n += kWide)
    for (int64_t d = 0; d < dim; d += kWide) {
      const int64_t rows = std::min(kWide, items - n), columns = std::min(kWide, dim - d);
      const float *corner = from + n * apart + d;
      Vector square[kWide];
      for (int64_t i = 0; i < kWide; i++)
        square[i] = i < rows ? scale * (columns == kWide ? load(corner + i * apart)
                                                         : some(corner + i * apart, columns))
                             : all(0);
      turn_square(square);
      for (int64_t i = 0; i < columns; i++) *(Vector *)(to + (d + i) * room + n) = square[i];
    }
}
} // namespace recreplay
#pragma GCC pop_options
#endif
