/* Exponentials of vectors. */
#ifndef RECREPLAY_EXPONENTIAL
#define RECREPLAY_EXPONENTIAL
#include "vector.h"
#ifdef __FMA__
#include <immintrin.h>
#endif
#pragma GCC push_options
#pragma GCC optimize("O3")
namespace recreplay {
RECREPLAY_INLINE Vector load(const float *from) { return *(const Vector *)from; }
RECREPLAY_INLINE Vector all(float value) { return (Vector){} + value; }

/* a * b + c, rounded once where the processor can: inductor has the compiler keep the two apart. */
RECREPLAY_INLINE Vector fused(Vector a, Vector b, Vector c) {
#if defined(__AVX512F__)
  return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__) && defined(__AVX2__)
  return (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

/* e^x to a unit in the last place or two, as Cephes' expf has it (S. Moshier): x = n ln 2 + r, and a
   polynomial of r. Beyond what float32 holds it is next to 0 or very large. */
RECREPLAY_INLINE Vector power(const Vector given) {
  Vector x = given > 88.0f ? all(88.0f) : given;
  x = x < -87.0f ? all(-87.0f) : x;
  const Vector shift = all(12582912.0f); /* 1.5 * 2^23: rounds to whole numbers */
  Vector n = fused(x, all(1.44269504088896341f), shift);
  const Ints exponent = (Ints)n << 23;
  n -= shift;
  const Vector r = fused(n, all(2.12194440e-4f), fused(n, all(-0.693359375f), x));
  Vector p = all(1.9875691500e-4f);
  p = fused(p, r, all(1.3981999507e-3f));
  p = fused(p, r, all(8.3334519073e-3f));
  p = fused(p, r, all(4.1665795894e-2f));
  p = fused(p, r, all(1.6666665459e-1f));
  p = fused(p, r, all(5.0000001201e-1f));
  p = fused(p * r, r, r) + 1.0f;
  return given == given ? (Vector)((Ints)p + exponent) : given; /* NaN stays */
}
} // namespace recreplay
#pragma GCC pop_options
#endif
