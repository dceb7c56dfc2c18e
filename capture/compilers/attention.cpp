/* `recreplay::attention`: see recreplay.runtime.attention. */
#include "calls.h"
#include "exponential.h"
#include "products.h"
#include "shares.h"
#include "turned.h"
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
  const float *mask; /* added to the scores or put in their place, or null */
  int64_t mask_steps[4]; /* from batch, head, query and key to the next */
  float *out; /* heads side by side */
  int64_t out_batch, out_item; /* how far apart */
  int64_t queries, keys, heads, groups, dim, width;
  float scale;
  float nothing; /* the share of a query that sees no key */
  bool causal, replaces;
};

static constexpr float kNone = -std::numeric_limits<float>::infinity();

/* The scores of a query with its mask: added, or put in their place where it is a number. */
static inline void apply(float *scores, const float *mask, int64_t step, int64_t keys,
                         bool replaces) {
  const auto masked = [replaces](auto score, auto given) {
    const auto changed = replaces ? given : score + given;
    return given == given || !replaces ? changed : score;
  };
  int64_t j = 0;
  if (step == 1)
    for (; j + kWide <= keys; j += kWide)
      *(Vector *)(scores + j) = masked(load(scores + j), load(mask + j));
  for (; j < keys; j++) scores[j] = masked(scores[j], mask[j * step]);
}

/* The scores of a query as weights, of which the first `seen` keys count, and what they have to be
   multiplied with to add up to 1: `nothing` where none counts. `room` is a multiple of a vector. */
static inline float weigh(float *scores, int64_t seen, int64_t room, float nothing) {
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
  const float found = largest(most), most_of_all = found == kNone ? 0 : found;
  Vector sums = {};
  for (int64_t j = 0; j < room; j += kWide) {
    const Vector given = load(scores + j);
    const Vector weight = given == kNone ? all(0) : power(given - most_of_all);
    *(Vector *)(scores + j) = weight;
    sums += weight;
  }
  const float sum = total(sums);
  return sum == 0 ? nothing : 1 / sum;
}

static inline void scale(float *values, int64_t count, float by) {
  int64_t j = 0;
  for (; j + kWide <= count; j += kWide) *(Vector *)(values + j) = load(values + j) * by;
  for (; j < count; j++) values[j] *= by;
}

/* What a thread works in. Keys have room for whole vectors of them, behind which are zeros. */
struct Scratch {
  int64_t room;
  std::vector<float> turned, scores, shares;

  explicit Scratch(const Attention &all)
      : room((all.keys + kWide - 1) / kWide * kWide), turned(all.dim * room),
        scores(std::min(kQueries, all.queries) * room), shares(std::min(kQueries, all.queries)) {}
};

static void one(const Attention &all, int64_t b, int64_t h, Scratch &scratch) {
  const int64_t keys = all.keys, dim = all.dim, width = all.width, room = scratch.room;
  const int64_t of = h / (all.heads / all.groups);
  const float *value = all.value.of(b, of), *query = all.query.of(b, h);
  float *turned = scratch.turned.data(), *scores = scratch.scores.data();
  turn(all.key.of(b, of), all.key.item, keys, dim, turned, room, all.scale);
  for (int64_t begin = 0; begin < all.queries; begin += kQueries) {
    const int64_t count = std::min(kQueries, all.queries - begin);
    lane(query + begin * all.query.item, all.query.item, turned, nullptr, scores, room, count, room,
         dim, 0, room, true, false);
    for (int64_t i = 0; i < count; i++) {
      float *row = scores + i * room;
      if (all.mask) {
        const float *mask = all.mask + b * all.mask_steps[0] + h * all.mask_steps[1] +
                            (begin + i) * all.mask_steps[2];
        apply(row, mask, all.mask_steps[3], keys, all.replaces);
      }
      const int64_t seen = all.causal ? std::min(begin + i + 1, keys) : keys;
      scratch.shares[i] = weigh(row, seen, room, all.nothing);
    }
    float *out = all.out + b * all.out_batch + begin * all.out_item + h * width;
    lane(scores, room, value, nullptr, out, all.out_item, count, width, keys, 0, all.value.item,
         true, false);
    for (int64_t i = 0; i < count; i++, out += all.out_item) scale(out, width, scratch.shares[i]);
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

RECREPLAY_CALLED
AOTITorchError aoti_torch_cpu_recreplay_attention_out(
    AtenTensorHandle out, AtenTensorHandle query, AtenTensorHandle key, AtenTensorHandle value,
    AtenTensorHandle *mask, int32_t causal, double scale, int32_t queries_first, int32_t replaces,
    int32_t by_parts) {
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
    all.scale = scale, all.causal = causal, all.replaces = replaces;
    all.nothing = by_parts ? std::numeric_limits<float>::quiet_NaN() : 0;
    heads::run(all, of[0]);
  });
}
