/* Products of bfloat16 by AMX: a tile is 16 rows of 64 bytes, which are 16 rows by 32 of x, 16 pairs
   of rows by 16 columns of a packed weight, or 16 by 16 sums. */
#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__)
#define RECREPLAY_AMX
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
namespace recreplay::amx {
constexpr int64_t kTile = 16; /* rows, columns, and pairs */
constexpr int64_t kStep = 32; /* of the inner dimension */

/* Linux has to be asked for the tiles, once in a process. */
static bool granted() {
  static const bool yes = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) == 0;
  return yes;
}

/* What the processor is told of its tiles. */
struct alignas(64) Shapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {}; /* of a row */
  uint8_t rows[16] = {};
};

/* Sums are tiles 0 to 3: two of `upper` and two of `lower` rows, or four of `upper` where there are
   four columns of tiles. x is 4 and, below, 5; weights are 6 and 7. `end`: columns of the last. */
static Shapes shapes(int64_t upper, int64_t lower, int64_t across, int64_t end) {
  Shapes told;
  for (int t = 0; t < 8; t++) told.bytes[t] = 4 * kTile, told.rows[t] = kTile;
  told.rows[0] = told.rows[1] = told.rows[4] = upper;
  told.rows[2] = told.rows[3] = lower ? lower : upper;
  if (lower) told.rows[5] = lower;
  if (across == 1) told.bytes[0] = told.bytes[2] = told.bytes[6] = end * 4;
  if (across == 2) told.bytes[1] = told.bytes[3] = told.bytes[7] = end * 4;
  return told;
}

/* An operand: how far its steps and rows are apart, in bytes, and its last step, padded with zeros,
   where the inner dimension is no multiple of 32. */
struct Operand {
  const char *first;
  int64_t step, stride;
  const char *last;
  int64_t last_stride;
};

/* The compiler does not know that tiles are loaded from memory. */
static inline void written(const void *memory) { __asm__ volatile("" ::"r"(memory) : "memory"); }

/* A tiles of rows (1 or 2) by B of columns (1 or 2; 4 where A is 1). */
template <int A, int B>
static void multiply(Operand x, Operand weight, int64_t steps, const float *bias, float *y,
                     int64_t stride) {
  constexpr bool below = A == 2, beside = B > 1, wide = B == 4;
  if (bias) { /* in every row */
    _tile_loadd(0, bias, 0);
    if constexpr (beside) _tile_loadd(1, bias + kTile, 0);
    if constexpr (below) _tile_loadd(2, bias, 0);
    if constexpr (below && beside) _tile_loadd(3, bias + kTile, 0);
    if constexpr (wide) _tile_loadd(2, bias + 2 * kTile, 0);
    if constexpr (wide) _tile_loadd(3, bias + 3 * kTile, 0);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  auto step = [](const char *x, int64_t x_stride, const char *w, int64_t w_stride) {
    _tile_loadd(4, x, x_stride);
    _tile_loadd(6, w, w_stride);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (beside) _tile_loadd(7, w + 64, w_stride);
    if constexpr (beside) _tile_dpbf16ps(1, 4, 7);
    if constexpr (below) _tile_loadd(5, x + kTile * x_stride, x_stride);
    if constexpr (below) _tile_dpbf16ps(2, 5, 6);
    if constexpr (below && beside) _tile_dpbf16ps(3, 5, 7);
    if constexpr (wide) _tile_loadd(5, w + 128, w_stride);
    if constexpr (wide) _tile_dpbf16ps(2, 4, 5);
    if constexpr (wide) _tile_loadd(6, w + 192, w_stride);
    if constexpr (wide) _tile_dpbf16ps(3, 4, 6);
  };
  for (int64_t k = 0; k < steps; k++, x.first += x.step, weight.first += weight.step)
    step(x.first, x.stride, weight.first, weight.stride);
  if (x.last) step(x.last, x.last_stride, weight.last, weight.last_stride);
  _tile_stored(0, y, stride * 4);
  if constexpr (beside) _tile_stored(1, y + kTile, stride * 4);
  if constexpr (below) _tile_stored(2, y + kTile * stride, stride * 4);
  if constexpr (below && beside) _tile_stored(3, y + kTile * stride + kTile, stride * 4);
  if constexpr (wide) _tile_stored(2, y + 2 * kTile, stride * 4);
  if constexpr (wide) _tile_stored(3, y + 3 * kTile, stride * 4);
}

static void relu_of(float *y, int64_t rows, int64_t columns, int64_t stride) {
  const __mmask16 rest = 0xffff >> (-columns & (kTile - 1));
  for (int64_t i = 0; i < rows; i++, y += stride)
    for (int64_t j = 0; j < columns; j += kTile) {
      const __mmask16 some = columns - j > kTile ? 0xffff : rest;
      const __m512 v = _mm512_maskz_loadu_ps(some, y + j);
      /* the second, if that is NaN */
      _mm512_mask_storeu_ps(y + j, some, _mm512_max_ps(_mm512_setzero_ps(), v));
    }
}

/* y [M, columns] = x [M, K] by up to 64 columns of a block, of whose pairs `ld` are side by side. */
static void product(const c10::BFloat16 *x, const c10::BFloat16 *block, const float *bias, float *y,
                    int64_t stride, int64_t M, int64_t columns, int64_t K, int64_t ld, bool relu) {
  alignas(64) c10::BFloat16 x_last[2 * kTile * kStep], weight_last[4 * kTile * kStep];
  const int64_t steps = K / kStep, left = K % kStep;
  Operand weight = {(const char *)block, kTile * ld * 4, ld * 4, nullptr, 0};
  if (left) {
    memset(weight_last, 0, sizeof weight_last);
    for (int64_t pair = 0; pair < left / 2; pair++)
      memcpy(weight_last + pair * 4 * kStep, block + (steps * kTile + pair) * ld * 2, columns * 4);
    written(weight_last);
    weight.last = (const char *)weight_last, weight.last_stride = 4 * kStep * 2;
  }
  written(x); /* and the weight, and the bias */
  Shapes told; /* of no rows, which none that is needed has */
  for (int64_t i = 0, height; i < M; i += height) {
    height = std::min(2 * kTile, M - i);
    const int64_t upper = std::min(kTile, height), lower = height - upper;
    Operand rows = {(const char *)(x + i * K), 2 * kStep, 2 * K, nullptr, 0};
    if (left) {
      memset(x_last, 0, sizeof x_last);
      for (int64_t r = 0; r < height; r++)
        memcpy(x_last + r * kStep, x + (i + r) * K + steps * kStep, left * 2);
      written(x_last);
      rows.last = (const char *)x_last, rows.last_stride = 2 * kStep;
    }
    for (int64_t j = 0, width; j < columns; j += width) {
      const bool wide = !lower && columns - j == 4 * kTile;
      width = wide ? 4 * kTile : std::min(2 * kTile, columns - j);
      const int64_t across = (width + kTile - 1) / kTile;
      const Shapes needed = shapes(upper, lower, across, width - (across - 1) * kTile);
      if (memcmp(&told, &needed, sizeof told) != 0) {
        told = needed;
        written(&told);
        _tile_loadconfig(&told);
      }
      Operand part = weight;
      part.first += j * 4;
      if (left) part.last += j * 4;
      auto run = wide           ? multiply<1, 4>
                 : lower        ? (across == 2 ? multiply<2, 2> : multiply<2, 1>)
                 : across == 2  ? multiply<1, 2>
                                : multiply<1, 1>;
      run(rows, part, steps, bias ? bias + j : bias, y + i * stride + j, stride);
    }
    if (relu) relu_of(y + i * stride, height, columns, stride);
  }
  _tile_release();
}
} // namespace recreplay::amx
#endif
