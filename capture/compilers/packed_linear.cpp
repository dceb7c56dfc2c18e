/* `recreplay::packed_linear`: a product with each block of a weight, which lies as
   recreplay.runtime.packed_linear says, then the bias and the ReLU while the result is in registers.
   Processors without AVX2 call oneDNN's batch-reduce product. */
#include "calls.h"
#include "products.h"
namespace recreplay {
template <typename T>
static void lanes_of(AtenTensorHandle out, AtenTensorHandle x, AtenTensorHandle packed,
                     const float *bias, int64_t lanes, int64_t N, bool relu) {
  const bool made = lanes == 0; /* a weight for each lane in place of shares of one */
  lanes = made ? sizes(packed)[0] : lanes;
  const int64_t total = made ? N : sizes(packed)[0], K = sizes(packed)[1];
  const int64_t M = numel(out) / (lanes * N), apart = stride(out);
  const int64_t step = numel(x) == M * K ? 0 : M * K; /* 0: all lanes read the same rows */
  const int64_t next = lanes > 1 ? strides(out)[0] : 0;
  const T *weight = data<T>(packed), *from = data<T>(x);
  float *to = data<float>(out);
  auto some = [&](int64_t first, int64_t end) {
    for (int64_t l = first; l < end; l++) {
      const T *blocks = weight + (made ? l * K * N : 0);
      const int64_t begin = made ? 0 : l * (total / lanes);
      lane(from + l * step, K, blocks, bias ? bias + l * N : bias, to + l * next, apart, M, N, K,
           begin, total, made, relu);
    }
  };
  /* Few lanes are shared by their rows and columns. */
  const bool shared = lanes >= RECREPLAY_THREADS && lanes * M * N * K >= kWorthThreads;
  in_parts(lanes, shared ? 1 : lanes + 1, some);
}
} // namespace recreplay

RECREPLAY_CALLED
AOTITorchError aoti_torch_cpu_recreplay_packed_linear_out(
    AtenTensorHandle out, AtenTensorHandle x, AtenTensorHandle packed, AtenTensorHandle *bias,
    int64_t lanes, int64_t columns, int32_t relu) {
  using namespace recreplay;
  return guarded("packed_linear", [&] {
    const bool floats = dtype(packed) == aoti_torch_dtype_float32();
    auto run = floats ? lanes_of<float> : lanes_of<c10::BFloat16>;
    run(out, x, packed, bias ? data<float>(*bias) : nullptr, lanes, columns, relu);
  });
}
