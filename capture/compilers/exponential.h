/* Exponentials of vectors. A package may include it several times. */
#ifndef RECREPLAY_EXPONENTIAL
#define RECREPLAY_EXPONENTIAL
#include "vector.h"
#pragma GCC push_options
#pragma GCC optimize("O3")
namespace recreplay {
static inline Vector load(const float *from) { return *(const Vector *)from; }
static inline Vector all(float value) { return (Vector){} + value; }

/* e^x to a unit in the last place or two, as Cephes' expf has it (S. Moshier): x = n ln 2 + r, and a
   polynomial of r. Beyond what float32 holds it is next to 0 or very large. */
__attribute__((always_inline)) static inline Vector power(const Vector given) {
  Vector x = given > 88.0f ? all(88.0f) : given;
  x = x < -87.0f ? all(-87.0f) : x;
  const Vector shift = all(12582912.0f); /* 1.5 * 2^23: rounds to whole numbers */
  Vector n = x * 1.44269504088896341f + shift;
  const Ints exponent = (Ints)n << 23;
  n -= shift;
  const Vector r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vector p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return given == given ? (Vector)((Ints)p + exponent) : given; /* NaN stays */
}
} // namespace recreplay
#pragma GCC pop_options
#endif
