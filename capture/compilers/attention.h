AOTITorchError aoti_torch_cpu_recreplay_attention_out(AtenTensorHandle, AtenTensorHandle,
                                                     AtenTensorHandle, AtenTensorHandle,
                                                     AtenTensorHandle *, int32_t, double, int32_t);
/* `recreplay::attention`: see recreplay.runtime.attention. Copied into a package's source behind
   `extern`, inside of extern "C". */
extern "C++" {
#include "calls.h"
#include "exponential.h"
#include "products.h"
#include "shares.h"
#pragma GCC push_options
#pragma GCC optimize("O3")
namespace recreplay {
namespace heads {
constexpr int64_t kQueries = 96; /* whose weights are in a near cache at once */

/* `[batch, items, heads, values]`, values side by side. */
struct Items {
  const float *values;
  int64_t batch, item, head; /* how far apart */

  const float *of(int64_t b, int64_t h) const { return values + b * batch + h * head; }
};

struct Attention {
  Items query, key, value;
  const float *mask; /* added to the scores, or null */
  int64_t mask_steps[4]; /* from batch, head, query and key to the next */
  float *out; /* heads side by side */
  int64_t out_batch, out_item; /* how far apart */
  int64_t queries, keys, heads, groups, dim, width;
  float scale;
  bool causal;
};

static constexpr float kNone = -std::numeric_limits<float>::infinity();

/* y [M, N] = x [M, K] by w [K, N]. */
static void multiply(const float *x, const float *w, float *y, int64_t stride, int64_t M, int64_t N,
                     int64_t K) {
  lane(x, w, nullptr, y, stride, M, N, K, 0, N, true, false);
}

/* The scores of a query as weights that add up to 1, of which the first `seen` keys count; 0 where
   none does. `room` is a multiple of a vector. */
static inline void weigh(float *scores, int64_t seen, int64_t room) {
  Ints place;
  for (int i = 0; i < kWide; i++) place[i] = i;
  for (int64_t j = seen / kWide * kWide; j < room; j += kWide) {
    const Ints from = place + (int32_t)j;
    *(Vector *)(scores + j) = from < (int32_t)seen ? load(scores + j) : all(kNone);
  }
  Vector most = load(scores);
  for (int64_t j = kWide; j < room; j += kWide) {
    const Vector read = load(scores + j);
    most = read > most ? read : most;
  }
  float largest = most[0], sum = 0;
  for (int i = 1; i < kWide; i++) largest = most[i] > largest ? most[i] : largest;
  largest = largest == kNone ? 0 : largest; /* none counts */
  Vector sums = {};
  for (int64_t j = 0; j < room; j += kWide) {
    const Vector given = load(scores + j);
    const Vector weight = given == kNone ? all(0) : power(given - largest);
    *(Vector *)(scores + j) = weight;
    sums += weight;
  }
  for (int i = 0; i < kWide; i++) sum += sums[i];
  const float share = sum == 0 ? 0 : 1 / sum;
  for (int64_t j = 0; j < room; j += kWide) *(Vector *)(scores + j) = load(scores + j) * share;
}

/* What a thread works in. Keys have room for whole vectors of them, behind which are zeros. */
struct Scratch {
  int64_t together, room;
  std::vector<float> queries, turned, values, scores;

  explicit Scratch(const Attention &all)
      : together(std::min(kQueries, all.queries)), room((all.keys + kWide - 1) / kWide * kWide),
        queries(together * all.dim), turned(all.dim * room), values(room * all.width),
        scores(together * room) {}
};

static void one(const Attention &all, int64_t b, int64_t h, Scratch &scratch) {
  const int64_t keys = all.keys, dim = all.dim, width = all.width, room = scratch.room;
  const int64_t of = h / (all.heads / all.groups);
  const float *key = all.key.of(b, of), *value = all.value.of(b, of), *query = all.query.of(b, h);
  float *turned = scratch.turned.data(), *values = scratch.values.data();
  for (int64_t n = 0; n < keys; n++) {
    for (int64_t d = 0; d < dim; d++) turned[d * room + n] = key[n * all.key.item + d] * all.scale;
    memcpy(values + n * width, value + n * all.value.item, width * sizeof(float));
  }
  float *queries = scratch.queries.data(), *scores = scratch.scores.data();
  for (int64_t begin = 0; begin < all.queries; begin += kQueries) {
    const int64_t count = std::min(kQueries, all.queries - begin);
    for (int64_t i = 0; i < count; i++)
      memcpy(queries + i * dim, query + (begin + i) * all.query.item, dim * sizeof(float));
    multiply(queries, turned, scores, room, count, room, dim);
    for (int64_t i = 0; i < count; i++) {
      float *row = scores + i * room;
      if (all.mask) {
        const float *mask = all.mask + b * all.mask_steps[0] + h * all.mask_steps[1] +
                            (begin + i) * all.mask_steps[2];
        for (int64_t j = 0; j < keys; j++) row[j] += mask[j * all.mask_steps[3]];
      }
      weigh(row, all.causal ? std::min(begin + i + 1, keys) : keys, room);
    }
    float *out = all.out + b * all.out_batch + begin * all.out_item + h * width;
    multiply(scores, values, out, all.out_item, count, width, room);
  }
}

static void run(const Attention &all, int64_t batch) {
  in_parts(batch * all.heads, 2, [&](int64_t begin, int64_t end) {
    Scratch scratch(all);
    for (int64_t i = begin; i < end; i++) one(all, i / all.heads, i % all.heads, scratch);
  });
}

static Items items(AtenTensorHandle tensor) {
  const int64_t *apart = strides(tensor);
  if (apart[3] != 1 && sizes(tensor)[3] != 1)
    throw std::runtime_error("values of an item lie apart");
  return {data<float>(tensor), apart[0], apart[1], apart[2]};
}
} // namespace heads
} // namespace recreplay
#pragma GCC pop_options
} // extern "C++"

inline AOTITorchError aoti_torch_cpu_recreplay_attention_out(
    AtenTensorHandle out, AtenTensorHandle query, AtenTensorHandle key, AtenTensorHandle value,
    AtenTensorHandle *mask, int32_t causal, double scale, int32_t queries_first) {
  using namespace recreplay;
  return guarded("attention", [&] {
    const int64_t *of = sizes(query), *by = sizes(key), *apart = strides(out);
    heads::Attention all{heads::items(query), heads::items(key), heads::items(value)};
    if (mask) {
      all.mask = data<float>(*mask);
      std::copy(strides(*mask), strides(*mask) + 4, all.mask_steps);
    }
    all.out = data<float>(out);
    all.out_batch = apart[queries_first ? 1 : 0], all.out_item = apart[queries_first ? 0 : 1];
    all.queries = of[1], all.heads = of[2], all.dim = of[3];
    all.keys = by[1], all.groups = by[2], all.width = sizes(value)[3];
    all.scale = scale, all.causal = causal;
    heads::run(all, of[0]);
  });
}
