/* Steps of recurrent layers: see recreplay.runtime.recurrent. */
#ifndef RECREPLAY_RECURRENT
#define RECREPLAY_RECURRENT
#include "calls.h"
#include "exponential.h"
#include "shares.h"
/* Compiled with -O1, as a package's wrapper is, which keeps small arrays of vectors in memory. */
#pragma GCC push_options
#pragma GCC optimize("O3")
namespace recreplay {
namespace recurrent {
constexpr bool kMany = kVectorBytes > 32; /* 32 registers in place of 16 */
constexpr int kRows = kMany ? 6 : 4; /* that go through all steps together */

/* Vectors of the gates of so many rows, whose sums are in registers. */
constexpr int columns_of(int rows) { return rows > 2 ? (kMany ? 4 : 2) : (kMany ? 8 : 4); }

struct Layer {
  const float *gates, *first, *cells, *turned, *bias; /* cells: before the first step, if any */
  float *out;
  int64_t steps, hidden;
  bool reverse;
};

static inline Vector sigmoid(Vector x) { return 1.0f / (1.0f + power(-x)); }

/* tanh(x) = above / below to some units in the last place, as Eigen's ptanh has it: an odd polynomial
   by an even one, up to where float32 rounds to 1. */
struct Ratio {
  Vector above, below;
};

static inline Ratio hyperbolic(Vector x) {
  x = x > 7.90531110763549805f ? all(7.90531110763549805f) : x;
  x = x < -7.90531110763549805f ? all(-7.90531110763549805f) : x;
  const Vector square = x * x;
  Vector p = all(-2.76076847742355e-16f);
  p = fused(p, square, all(2.00018790482477e-13f));
  p = fused(p, square, all(-8.60467152213735e-11f));
  p = fused(p, square, all(5.12229709037114e-08f));
  p = fused(p, square, all(1.48572235717979e-05f));
  p = fused(p, square, all(6.37261928875436e-04f));
  p = fused(p, square, all(4.89352455891786e-03f));
  Vector q = all(1.19825839466702e-06f);
  q = fused(q, square, all(1.18534705686654e-04f));
  q = fused(q, square, all(2.26843463243900e-03f));
  q = fused(q, square, all(4.89352518554385e-03f));
  return {p * x, q};
}

/* A vector of the new state: of what the inputs give to each gate, what the state gives to it, and
   the state before. */
struct Gru {
  static constexpr int kGates = 3; /* reset, update, new */
  static constexpr bool kCells = false;

  static inline Vector step(const float *given, const float *own, int64_t hidden, Vector before,
                            const float *, float *) {
    const Vector reset = sigmoid(load(given) + load(own));
    const Vector kept = sigmoid(load(given + hidden) + load(own + hidden));
    const Ratio tanh = hyperbolic(fused(reset, load(own + 2 * hidden), load(given + 2 * hidden)));
    const Vector made = tanh.above / tanh.below;
    return fused(kept, before - made, made);
  }
};

struct Lstm {
  static constexpr int kGates = 4; /* input, forget, new, output */
  static constexpr bool kCells = true;

  static inline Vector step(const float *given, const float *own, int64_t hidden, Vector,
                            const float *cell, float *next) {
    const Vector in = power(-(load(given) + load(own)));
    const Vector kept = sigmoid(load(given + hidden) + load(own + hidden));
    const Ratio made = hyperbolic(load(given + 2 * hidden) + load(own + 2 * hidden));
    const Vector out = power(-(load(given + 3 * hidden) + load(own + 3 * hidden)));
    const Vector held = kept * load(cell) + made.above / (made.below + made.below * in);
    *(Vector *)next = held;
    const Ratio shown = hyperbolic(held);
    return shown.above / (shown.below + shown.below * out);
  }
};

/* R rows of `state` by V vectors of columns of the weight, which are `width` in all. */
template <int R, int V>
static inline void multiply(const float *state, const Layer &layer, int64_t width, int64_t column,
                            float *own) {
  Vector sums[R][V];
#pragma GCC unroll 8
  for (int v = 0; v < V; v++) {
    sums[0][v] = layer.bias ? load(layer.bias + column + v * kWide) : all(0);
#pragma GCC unroll 8
    for (int r = 1; r < R; r++) sums[r][v] = sums[0][v];
  }
  const float *weight = layer.turned + column;
  for (int64_t k = 0; k < layer.hidden; k++, weight += width) {
    Vector read[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) read[v] = load(weight + v * kWide);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int v = 0; v < V; v++)
        sums[r][v] = fused(all(state[r * layer.hidden + k]), read[v], sums[r][v]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) *(Vector *)(own + r * width + column + v * kWide) = sums[r][v];
}

/* R rows, from item `row` on, through all steps. `state` has room for R states, cells and cells of
   the next step, and `own` for R of all gates. The last vectors begin so that they end with the row,
   and do some columns again. */
template <typename Cell, int R>
static void run(const Layer &layer, int64_t row, float *state, float *own) {
  const int64_t hidden = layer.hidden, width = Cell::kGates * hidden, steps = layer.steps;
  const size_t size = R * hidden * sizeof(float);
  float *cells = state + R * hidden, *next = cells + R * hidden;
  memcpy(state, layer.first + row * hidden, size);
  if (Cell::kCells) memcpy(cells, layer.cells + row * hidden, size);
  for (int64_t at = 0; at < steps; at++) {
    const int64_t step = layer.reverse ? steps - 1 - at : at;
    int64_t column = 0;
    constexpr int many = columns_of(R);
    for (; column + many * kWide <= width; column += many * kWide)
      multiply<R, many>(state, layer, width, column, own);
    if constexpr (many > 4)
      if (column + 4 * kWide <= width)
        multiply<R, 4>(state, layer, width, column, own), column += 4 * kWide;
    if (column + 2 * kWide <= width)
      multiply<R, 2>(state, layer, width, column, own), column += 2 * kWide;
    for (; column < width; column += kWide)
      multiply<R, 1>(state, layer, width, std::min(column, width - kWide), own);
    for (int r = 0; r < R; r++) {
      const int64_t place = (row + r) * steps + step;
      const float *given = layer.gates + place * width, *mine = own + r * width;
      float *out = layer.out + place * hidden, *before = state + r * hidden;
      for (int64_t j = 0; j < hidden; j += kWide) {
        const int64_t i = std::min(j, hidden - kWide), cell = r * hidden + i;
        *(Vector *)(out + i) = Cell::step(given + i, mine + i, hidden, load(before + i),
                                          cells + cell, next + cell);
      }
      memcpy(before, out, hidden * sizeof(float));
    }
    std::swap(cells, next);
  }
}

template <typename Cell>
static void rows(const Layer &layer, int64_t begin, int64_t end) {
  std::vector<float> scratch(kRows * (3 + Cell::kGates) * layer.hidden);
  float *state = scratch.data(), *own = state + kRows * 3 * layer.hidden;
  for (int64_t row = begin; row < end;) {
    const int64_t left = end - row;
    if (left >= kRows) run<Cell, kRows>(layer, row, state, own), row += kRows;
    else if (left >= 4) run<Cell, 4>(layer, row, state, own), row += 4;
    else if (left >= 2) run<Cell, 2>(layer, row, state, own), row += 2;
    else run<Cell, 1>(layer, row, state, own), row += 1;
  }
}

template <typename Cell>
static void run_all(const Layer &layer, int64_t count) {
  in_parts(count, kRows + 1, [&](int64_t begin, int64_t end) { rows<Cell>(layer, begin, end); });
}

/* `cells` and `bias` may be null. */
template <typename Cell>
static AOTITorchError call(const char *name, AtenTensorHandle out, AtenTensorHandle gates,
                           AtenTensorHandle first, AtenTensorHandle cells, AtenTensorHandle turned,
                           AtenTensorHandle *bias, int32_t reverse) {
  return guarded(name, [&] {
    const int64_t *shape = sizes(gates);
    const Layer layer{data<float>(gates), data<float>(first),
                      cells ? data<float>(cells) : nullptr, data<float>(turned),
                      bias ? data<float>(*bias) : nullptr, data<float>(out), shape[1],
                      shape[2] / Cell::kGates, reverse != 0};
    run_all<Cell>(layer, shape[0]);
  });
}
} // namespace recurrent
} // namespace recreplay
#pragma GCC pop_options
#endif
