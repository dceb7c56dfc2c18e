/* Products with blocks of a packed weight by AVX2: up to six rows by two vectors of columns at a time,
   or fewer rows by more, whose sums stay in registers. */
namespace recreplay {
constexpr int64_t kTile = 6;   /* rows, with two vectors of columns in 15 registers */
constexpr int64_t kSteps = 32; /* steps of `in` that a weight is asked for ahead */

/* R rows by V vectors of columns: by whole blocks of two, which lie `apart`, or by the first `columns`
   of one if Part. `far`: the weight is in no near cache, and a processor's own prefetching ends with
   every page. */
template <int R, int V, bool Part>
static void tile(const float *x, int64_t ldx, const float *block, const float *bias, float *y,
                 int64_t stride, int64_t columns, int64_t K, int64_t ld, int64_t apart, bool far,
                 bool relu) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i some[2] = {_mm256_cmpgt_epi32(_mm256_set1_epi32((int)columns), lanes),
                           _mm256_cmpgt_epi32(_mm256_set1_epi32((int)columns - 8), lanes)};
  auto load = [&](const float *from, int v) {
    if constexpr (Part) return _mm256_maskload_ps(from, some[v % 2]);
    return _mm256_loadu_ps(from);
  };
  __m256 sums[R][V];
#pragma GCC unroll 8
  for (int v = 0; v < V; v++) {
    sums[0][v] = bias ? load(bias + v * 8, v) : _mm256_setzero_ps();
#pragma GCC unroll 6
    for (int r = 1; r < R; r++) sums[r][v] = sums[0][v];
  }
  for (int64_t k = 0; k < K; k++, block += ld) {
    if (far) {
#pragma GCC unroll 8
      for (int v = 0; v < V; v += 2) __builtin_prefetch(block + v / 2 * apart + kSteps * ld);
    }
    __m256 weight[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
      weight[v] = load(block + v / 2 * apart + v % 2 * 8, v);
      if constexpr (R > 1) __asm__("" : "+x"(weight[v])); /* or it is loaded again for every row */
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
      const __m256 value = _mm256_broadcast_ss(x + r * ldx + k);
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) sums[r][v] = _mm256_fmadd_ps(value, weight[v], sums[r][v]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
      __m256 sum = sums[r][v];
      if (relu) sum = _mm256_max_ps(_mm256_setzero_ps(), sum); /* the second, if that is NaN */
      float *to = y + r * stride + v * 8;
      if constexpr (Part) _mm256_maskstore_ps(to, some[v % 2], sum);
      else _mm256_storeu_ps(to, sum);
    }
}

template <int V, bool Part>
static void tiles(const float *x, int64_t ldx, const float *block, const float *bias, float *y,
                  int64_t stride, int64_t M, int64_t columns, int64_t K, int64_t ld, int64_t apart,
                  bool far, bool relu) {
  constexpr int most = V == 8 ? 1 : V == 4 ? 3 : kTile; /* rows that the registers hold */
  static constexpr decltype(&tile<1, V, Part>) of[] = {
      tile<1, V, Part>,
      tile<std::min(2, most), V, Part>,
      tile<std::min(3, most), V, Part>,
      tile<std::min(4, most), V, Part>,
      tile<std::min(5, most), V, Part>,
      tile<std::min(6, most), V, Part>};
  for (int64_t left = (M + most - 1) / most; left > 0; left--) {
    const int64_t rows = (M + left - 1) / left; /* as even as can be */
    of[rows - 1](x, ldx, block, bias, y, stride, columns, K, ld, apart, far, relu);
    M -= rows, x += rows * ldx, y += rows * stride, far = false;
  }
}

/* Rows by whole blocks of 16 columns: with few rows by several of them, which fills the registers. */
static void blocks(const float *x, int64_t ldx, const float *block, const float *bias, float *y,
                   int64_t stride, int64_t M, int64_t count, int64_t K, int64_t ld, int64_t apart,
                   bool far, bool relu) {
  while (count > 0) {
    const int64_t now = M == 1 && count >= 4 ? 4 : M <= 3 && count >= 2 ? 2 : 1;
    auto of = now == 4 ? tiles<8, false> : now == 2 ? tiles<4, false> : tiles<2, false>;
    of(x, ldx, block, bias, y, stride, M, now * 16, K, ld, apart, far, relu);
    count -= now, block += now * apart, y += now * 16, bias += bias ? now * 16 : 0;
  }
}
} // namespace recreplay
