/* Products with a block of a packed weight by AVX-512: up to six rows by up to four vectors of columns
   at a time, whose sums stay in registers. */
namespace recreplay {
constexpr int64_t kTile = 6; /* rows, with four vectors of columns in 24 registers */

/* What a row adds at one step of `in`, or at two of bfloat16, to the columns of a vector. */
static inline __m512 step(const float *x, __m512 weight, __m512 sum) {
  return _mm512_fmadd_ps(_mm512_set1_ps(*x), weight, sum);
}

#ifdef __AVX512BF16__
constexpr bool kPairs = true;
static inline __m512 step(const c10::BFloat16 *x, __m512 weight, __m512 sum) {
  int32_t pair;
  memcpy(&pair, x, sizeof pair);
  return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)weight);
}
#else
constexpr bool kPairs = false;
#endif

/* R rows by `columns` of a block, which are V vectors, the last of them perhaps in part. */
template <int R, int V, typename T>
static void tile(const T *x, int64_t ldx, const T *block, const float *bias, float *y,
                 int64_t stride, int64_t columns, int64_t K, int64_t ld, bool relu) {
  constexpr int64_t pair = 4 / sizeof(T);
  __mmask16 some[V];
#pragma GCC unroll 6
  for (int v = 0; v < V; v++) some[v] = 0xffff;
  some[V - 1] >>= V * kWide - columns;
  __m512 sums[R][V];
#pragma GCC unroll 6
  for (int v = 0; v < V; v++) {
    sums[0][v] = bias ? _mm512_maskz_loadu_ps(some[v], bias + v * kWide) : _mm512_setzero_ps();
#pragma GCC unroll 6
    for (int r = 1; r < R; r++) sums[r][v] = sums[0][v];
  }
  for (int64_t k = 0; k < K; k += pair, block += ld * pair) {
    __m512 weight[V];
#pragma GCC unroll 6
    for (int v = 0; v < V; v++) {
      weight[v] = _mm512_maskz_loadu_ps(some[v], block + v * kWide * pair);
      __asm__("" : "+v"(weight[v])); /* or the compiler loads it again for every row */
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 6
      for (int v = 0; v < V; v++) sums[r][v] = step(x + r * ldx + k, weight[v], sums[r][v]);
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; r++)
#pragma GCC unroll 6
    for (int v = 0; v < V; v++) {
      __m512 sum = sums[r][v];
      if (relu) sum = _mm512_max_ps(_mm512_setzero_ps(), sum); /* the second, if that is NaN */
      _mm512_mask_storeu_ps(y + r * stride + v * kWide, some[v], sum);
    }
}

template <int V, typename T>
static void tiles(const T *x, int64_t ldx, const T *block, const float *bias, float *y,
                  int64_t stride, int64_t M, int64_t columns, int64_t K, int64_t ld, bool relu) {
  static constexpr decltype(&tile<1, V, T>) of[kTile] = {
      tile<1, V, T>, tile<2, V, T>, tile<3, V, T>, tile<4, V, T>, tile<5, V, T>, tile<6, V, T>};
  for (int64_t left = (M + kTile - 1) / kTile; left > 0; left--) {
    const int64_t rows = (M + left - 1) / left; /* as even as can be */
    of[rows - 1](x, ldx, block, bias, y, stride, columns, K, ld, relu);
    M -= rows, x += rows * ldx, y += rows * stride;
  }
}
} // namespace recreplay
