AOTITorchError aoti_torch_cpu_recreplay_packed_linear_out(AtenTensorHandle, AtenTensorHandle,
                                                         AtenTensorHandle, AtenTensorHandle *,
                                                         int64_t, int64_t, int32_t);
/* `recreplay::packed_linear`: a product with each block of a weight, which lies as
   recreplay.runtime.packed_linear says, then the bias and the ReLU while the result is in registers.
   Processors without AVX2 call oneDNN's batch-reduce product. Copied into a package's source behind
   `extern`, inside of extern "C". */
extern "C++" {
#include "products.h"
#include "shares.h"
namespace recreplay {
template <typename T>
static void lanes_of(AtenTensorHandle out, AtenTensorHandle x, AtenTensorHandle packed,
                     const float *bias, int64_t lanes, int64_t N, bool relu) {
  void *to, *from, *weight;
  int64_t *shape, *strides, dims, total, elements, K;
  aoti_torch_get_data_ptr(out, &to);
  aoti_torch_get_data_ptr(x, &from);
  aoti_torch_get_data_ptr(packed, &weight);
  aoti_torch_get_sizes(packed, &shape);
  const bool made = lanes == 0; /* a weight for each lane in place of shares of one */
  lanes = made ? shape[0] : lanes;
  total = made ? N : shape[0], K = shape[1];
  aoti_torch_get_numel(out, &elements);
  aoti_torch_get_dim(out, &dims);
  aoti_torch_get_strides(out, &strides);
  if (strides[dims - 1] != 1) throw std::runtime_error("columns of the result lie apart");
  const int64_t M = elements / (lanes * N);
  aoti_torch_get_numel(x, &elements);
  const int64_t step = elements == M * K ? 0 : M * K; /* 0: all lanes read the same rows */
  auto some = [&](int64_t first, int64_t end) {
    for (int64_t l = first; l < end; l++) {
      const T *blocks = (const T *)weight + (made ? l * K * N : 0);
      const int64_t begin = made ? 0 : l * (total / lanes);
      lane((const T *)from + l * step, blocks, bias ? bias + l * N : bias,
           (float *)to + (lanes > 1 ? l * strides[0] : 0), strides[dims - 2], M, N, K, begin, total,
           made, relu);
    }
  };
  /* Few lanes are shared by their rows and columns. */
  if (lanes >= RECREPLAY_THREADS && lanes * M * N * K >= kWorthThreads) in_parts(lanes, 1, some);
  else some(0, lanes);
}
} // namespace recreplay
} // extern "C++"

inline AOTITorchError aoti_torch_cpu_recreplay_packed_linear_out(
    AtenTensorHandle out, AtenTensorHandle x, AtenTensorHandle packed, AtenTensorHandle *bias,
    int64_t lanes, int64_t columns, int32_t relu) {
  try {
    void *added = nullptr;
    int32_t dtype;
    if (bias) aoti_torch_get_data_ptr(*bias, &added);
    aoti_torch_get_dtype(packed, &dtype);
    auto run = recreplay::lanes_of<float>;
    if (dtype != aoti_torch_dtype_float32()) {
#if RECREPLAY_BFLOAT16 /* a tenth of the time of compiling a package */
      run = recreplay::lanes_of<c10::BFloat16>;
#else
      throw std::runtime_error("a weight is bfloat16 in a package that was made without it");
#endif
    }
    run(out, x, packed, (const float *)added, lanes, columns, relu);
    return AOTI_TORCH_SUCCESS;
  } catch (const std::exception &error) {
    fprintf(stderr, "packed_linear: %s\n", error.what());
    return AOTI_TORCH_FAILURE;
  }
}
