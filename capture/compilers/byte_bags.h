AOTITorchError aoti_torch_cpu_recreplay_byte_bags_out(AtenTensorHandle, AtenTensorHandle,
                                                     AtenTensorHandle, AtenTensorHandle, int64_t,
                                                     int32_t);
/* `recreplay::byte_bags`: see recreplay.runtime.byte_bags. Copied into a package's source behind
   `extern`, inside of extern "C". */
extern "C++" {
#ifdef __AVX2__
#include <immintrin.h>
#endif
namespace recreplay {
/* Spelt out, because a package's wrapper is compiled without vectorising loops; as wide as the
   processor has them, because wider ones are kept in memory. GCC converts bytes one by one. */
#if defined(__AVX512F__)
typedef float Floats __attribute__((vector_size(64), aligned(4), may_alias));
static inline Floats widen(const uint8_t *codes) {
  return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(*(const __m128i_u *)codes));
}
#elif defined(__AVX2__)
typedef float Floats __attribute__((vector_size(32), aligned(4), may_alias));
static inline Floats widen(const uint8_t *codes) {
  return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)codes)));
}
#else
typedef float Floats __attribute__((vector_size(16), aligned(4), may_alias));
static inline Floats widen(const uint8_t *codes) {
  return Floats{(float)codes[0], (float)codes[1], (float)codes[2], (float)codes[3]};
}
#endif
constexpr int64_t kAtOnce = sizeof(Floats) / sizeof(float);
constexpr int64_t kAhead = 16; /* ids between the row that is read and the one that is fetched */
constexpr int64_t kBagsOfThread = 64;

/* Values [at, at + kAtOnce * V) of a bag. */
template <int V, typename Id>
static inline void piece(const uint8_t *codes, const float *scales, const Id *ids, int64_t length,
                         int64_t dim, int64_t at, float share, float *out) {
  Floats a = {}, b = {}, c = {}, d = {};
  float offset = 0;
  for (int64_t i = 0; i < length; i++) {
    const int64_t id = ids[i];
    const uint8_t *row = codes + id * dim + at;
    const float scale = scales[2 * id];
    offset += scales[2 * id + 1];
    a += widen(row) * scale;
    if constexpr (V > 1) b += widen(row + kAtOnce) * scale;
    if constexpr (V > 2) c += widen(row + 2 * kAtOnce) * scale;
    if constexpr (V > 3) d += widen(row + 3 * kAtOnce) * scale;
  }
  Floats *to = (Floats *)(out + at);
  to[0] = (a + offset) * share;
  if constexpr (V > 1) to[1] = (b + offset) * share;
  if constexpr (V > 2) to[2] = (c + offset) * share;
  if constexpr (V > 3) to[3] = (d + offset) * share;
}

template <typename Id>
static void bag(const uint8_t *codes, const float *scales, const Id *ids, int64_t length,
                int64_t dim, bool mean, float *out) {
  const float share = mean ? 1.0f / length : 1.0f;
  int64_t at = 0;
  for (; at + 4 * kAtOnce <= dim; at += 4 * kAtOnce)
    piece<4>(codes, scales, ids, length, dim, at, share, out);
  const int64_t left = (dim - at) / kAtOnce;
  if (left == 3) piece<3>(codes, scales, ids, length, dim, at, share, out);
  if (left == 2) piece<2>(codes, scales, ids, length, dim, at, share, out);
  if (left == 1) piece<1>(codes, scales, ids, length, dim, at, share, out);
  for (at += left * kAtOnce; at < dim; at++) {
    float sum = 0;
    for (int64_t i = 0; i < length; i++) {
      const int64_t id = ids[i];
      sum += codes[id * dim + at] * scales[2 * id] + scales[2 * id + 1];
    }
    out[at] = sum * share;
  }
}

template <typename Id>
static void bags(const uint8_t *codes, const float *scales, const void *given, int64_t count,
                 int64_t rows, int64_t length, int64_t dim, int64_t stride, bool mean, float *out) {
  const Id *ids = (const Id *)given;
  for (int64_t i = 0; i < count; i++) /* requests were checked, ids that a model computes were not */
    if (ids[i] < 0 || ids[i] >= rows) throw std::out_of_range("an id is not below the rows");
  const int64_t total = count / length;
  auto one = [&](int64_t i) {
    const int64_t soon = std::min(count, (i + 1) * length + kAhead);
    for (int64_t k = std::min(count, i * length + kAhead); k < soon; k++) {
      __builtin_prefetch(scales + 2 * ids[k]);
      for (int64_t j = 0; j < dim; j += 64) __builtin_prefetch(codes + ids[k] * dim + j);
    }
    bag(codes, scales, ids + i * length, length, dim, mean, out + i * stride);
  };
#if RECREPLAY_THREADS > 1
  #pragma omp parallel for num_threads(RECREPLAY_THREADS) if (total >= kBagsOfThread)
#endif
  for (int64_t i = 0; i < total; i++) one(i);
}
} // namespace recreplay
} // extern "C++"

inline AOTITorchError aoti_torch_cpu_recreplay_byte_bags_out(
    AtenTensorHandle out, AtenTensorHandle codes, AtenTensorHandle scales, AtenTensorHandle ids,
    int64_t length, int32_t mean) {
  try {
    void *to, *bytes, *pairs, *given;
    int64_t *shape, *strides, count;
    int32_t dtype;
    aoti_torch_get_data_ptr(out, &to);
    aoti_torch_get_data_ptr(codes, &bytes);
    aoti_torch_get_data_ptr(scales, &pairs);
    aoti_torch_get_data_ptr(ids, &given);
    aoti_torch_get_sizes(codes, &shape);
    aoti_torch_get_strides(out, &strides);
    aoti_torch_get_numel(ids, &count);
    aoti_torch_get_dtype(ids, &dtype);
    if (strides[1] != 1) throw std::runtime_error("columns of the result lie apart");
    auto run = dtype == aoti_torch_dtype_int64() ? recreplay::bags<int64_t>
                                                 : recreplay::bags<int32_t>;
    run((const uint8_t *)bytes, (const float *)pairs, given, count, shape[0], length, shape[1],
        strides[0], mean, (float *)to);
    return AOTI_TORCH_SUCCESS;
  } catch (const std::exception &error) {
    fprintf(stderr, "byte_bags: %s\n", error.what());
    return AOTI_TORCH_FAILURE;
  }
}
