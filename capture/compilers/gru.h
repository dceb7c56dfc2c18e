AOTITorchError aoti_torch_cpu_recreplay_gru_out(AtenTensorHandle, AtenTensorHandle,
                                               AtenTensorHandle, AtenTensorHandle,
                                               AtenTensorHandle *, int32_t);
/* `recreplay::gru`: see recreplay.runtime.gru. Copied into a package's source behind `extern`,
   inside of extern "C". */
extern "C++" {
#include "shares.h"
#include "vector.h"
/* A package's wrapper is compiled with -O1, which keeps small arrays of vectors in memory. */
#pragma GCC push_options
#pragma GCC optimize("O3")
namespace recreplay {
namespace recurrent {
constexpr int kRows = 4;    /* that go through all steps together */
constexpr int kColumns = kVectorBytes > 32 ? 4 : 2; /* vectors of the gates, in registers */

struct Layer {
  const float *gates, *first, *turned, *bias;
  float *out;
  int64_t steps, hidden;
  bool reverse;
};

static inline Vector load(const float *from) { return *(const Vector *)from; }
static inline Vector all(float value) { return (Vector){} + value; }
static inline Vector choose(Ints where, Vector yes, Vector no) {
  return (Vector)(((Ints)yes & where) | ((Ints)no & ~where));
}

/* e^x to a unit in the last place or two, as Cephes' expf has it (S. Moshier): x = n ln 2 + r, and a
   polynomial of r. Beyond what float32 holds it is next to 0 or very large. */
static inline Vector power(const Vector given) {
  Vector x = choose(given > 88.0f, all(88.0f), given);
  x = choose(x < -87.0f, all(-87.0f), x);
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
  return choose(given == given, (Vector)((Ints)p + exponent), given); /* NaN stays */
}

static inline Vector sigmoid(Vector x) { return 1.0f / (1.0f + power(-x)); }

/* As Cephes' tanhf: a polynomial next to 0, where 1 - 2 / (e^2x + 1) would be rounded away. */
static inline Vector hyperbolic(Vector x) {
  const Vector square = x * x;
  Vector p = all(-5.70498872745e-3f);
  p = p * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const Vector near = p * square * x + x, far = 1.0f - 2.0f / (power(2.0f * x) + 1.0f);
  return choose(square < 0.390625f, near, far);
}

/* R rows of `state` by V vectors of columns of the weight, which are `width` in all. */
template <int R, int V>
static inline void multiply(const float *state, const Layer &layer, int64_t column, float *own) {
  const int64_t width = 3 * layer.hidden;
  Vector sums[R][V];
#pragma GCC unroll 4
  for (int v = 0; v < V; v++) {
    sums[0][v] = layer.bias ? load(layer.bias + column + v * kWide) : all(0);
#pragma GCC unroll 4
    for (int r = 1; r < R; r++) sums[r][v] = sums[0][v];
  }
  const float *weight = layer.turned + column;
  for (int64_t k = 0; k < layer.hidden; k++, weight += width) {
    Vector read[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) read[v] = load(weight + v * kWide);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) sums[r][v] += state[r * layer.hidden + k] * read[v];
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) *(Vector *)(own + r * width + column + v * kWide) = sums[r][v];
}

/* R rows, from item `row` on, through all steps. `state` has room for R of H, `own` for R of 3H. The
   last vectors begin so that they end with the row, and do some columns again. */
template <int R>
static void run(const Layer &layer, int64_t row, float *state, float *own) {
  const int64_t hidden = layer.hidden, width = 3 * hidden, steps = layer.steps;
  memcpy(state, layer.first + row * hidden, R * hidden * sizeof(float));
  for (int64_t at = 0; at < steps; at++) {
    const int64_t step = layer.reverse ? steps - 1 - at : at;
    int64_t column = 0;
    for (; column + kColumns * kWide <= width; column += kColumns * kWide)
      multiply<R, kColumns>(state, layer, column, own);
    for (; column < width; column += kWide)
      multiply<R, 1>(state, layer, std::min(column, width - kWide), own);
    for (int r = 0; r < R; r++) {
      const float *given = layer.gates + ((row + r) * steps + step) * width, *mine = own + r * width;
      float *out = layer.out + ((row + r) * steps + step) * hidden, *before = state + r * hidden;
      for (int64_t j = 0; j < hidden; j += kWide) {
        const int64_t i = std::min(j, hidden - kWide);
        const Vector reset = sigmoid(load(given + i) + load(mine + i));
        const Vector kept = sigmoid(load(given + hidden + i) + load(mine + hidden + i));
        const Vector made =
            hyperbolic(load(given + 2 * hidden + i) + reset * load(mine + 2 * hidden + i));
        *(Vector *)(out + i) = made + kept * (load(before + i) - made);
      }
      memcpy(before, out, hidden * sizeof(float));
    }
  }
}

static void rows(const Layer &layer, int64_t begin, int64_t end) {
  std::vector<float> scratch(kRows * 4 * layer.hidden);
  float *state = scratch.data(), *own = state + kRows * layer.hidden;
  for (int64_t row = begin; row < end;) {
    const int64_t left = end - row;
    if (left >= 4) run<4>(layer, row, state, own), row += 4;
    else if (left >= 2) run<2>(layer, row, state, own), row += 2;
    else run<1>(layer, row, state, own), row += 1;
  }
}

static void run_all(const Layer &layer, int64_t count) {
  in_parts(count, kRows + 1, [&](int64_t begin, int64_t end) { rows(layer, begin, end); });
}
} // namespace recurrent
} // namespace recreplay
#pragma GCC pop_options
} // extern "C++"

inline AOTITorchError aoti_torch_cpu_recreplay_gru_out(AtenTensorHandle out, AtenTensorHandle gates,
                                                      AtenTensorHandle first,
                                                      AtenTensorHandle turned,
                                                      AtenTensorHandle *bias, int32_t reverse) {
  try {
    void *to, *given, *state, *weight, *added = nullptr;
    int64_t *shape;
    aoti_torch_get_data_ptr(out, &to);
    aoti_torch_get_data_ptr(gates, &given);
    aoti_torch_get_data_ptr(first, &state);
    aoti_torch_get_data_ptr(turned, &weight);
    if (bias) aoti_torch_get_data_ptr(*bias, &added);
    aoti_torch_get_sizes(gates, &shape);
    const recreplay::recurrent::Layer layer{
        (const float *)given, (const float *)state, (const float *)weight, (const float *)added,
        (float *)to, shape[1], shape[2] / 3, reverse != 0};
    recreplay::recurrent::run_all(layer, shape[0]);
    return AOTI_TORCH_SUCCESS;
  } catch (const std::exception &error) {
    fprintf(stderr, "gru: %s\n", error.what());
    return AOTI_TORCH_FAILURE;
  }
}
