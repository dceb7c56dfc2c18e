/* Copies rows of inputs into staging memory, and compares ids meanwhile. Included by fill.c. */

#define BLOCK 2048 /* bytes that are copied while the next are fetched */
#define LINE 64    /* bytes of a cache line */

#if defined(__x86_64__) && defined(__GLIBC__)
#define ANY_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define ANY_CPU
#endif

/* Numbers of a request, which may lie anywhere: a server reads them where the message has them. */
typedef uint64_t given_64 __attribute__((aligned(1), may_alias));
typedef uint32_t given_32 __attribute__((aligned(1), may_alias));
typedef int64_t signed_64 __attribute__((aligned(1), may_alias));
typedef int32_t signed_32 __attribute__((aligned(1), may_alias));

ANY_CPU static int any_beyond_64(const uint64_t *ids, size_t count, uint64_t least,
                                uint64_t limit) {
  uint64_t beyond = 0;
  for (size_t i = 0; i < count; i++) beyond |= ids[i] - least >= limit;
  return beyond != 0;
}

ANY_CPU static int any_beyond_32(const uint32_t *ids, size_t count, uint32_t least,
                                uint32_t limit) {
  uint32_t beyond = 0;
  for (size_t i = 0; i < count; i++) beyond |= ids[i] - least >= limit;
  return beyond != 0;
}

/* Limits above what 32 bits hold are above all ids. */
static int is_checked(const struct input *input) {
  return input->id_bytes == 8 || (input->id_bytes == 4 && input->limit <= UINT32_MAX);
}

/* Compared without a sign: what is below the least is above every limit. */
static int any_bad(const char *ids, size_t bytes, const struct input *input) {
  if (!is_checked(input)) return 0;
  uint64_t least = input->least, limit = input->limit;
  if (input->id_bytes == 8) return any_beyond_64((const uint64_t *)ids, bytes / 8, least, limit);
  return any_beyond_32((const uint32_t *)ids, bytes / 4, (uint32_t)least, (uint32_t)limit);
}

/* Copies ids. What is staged of those that do not fit is of no use. */
#define COPY_IDS(name, Staged, Given)                                                              \
  ANY_CPU static int name(Staged *restrict to, const Given *restrict ids, size_t n, Given least,   \
                          Given limit) {                                                           \
    Given beyond = 0;                                                                              \
    for (size_t i = 0; i < n; i++) {                                                               \
      beyond |= ids[i] - least >= limit;                                                           \
      to[i] = (Staged)ids[i];                                                                      \
    }                                                                                              \
    return beyond != 0;                                                                            \
  }
COPY_IDS(copy_64, uint64_t, given_64)
COPY_IDS(copy_32, uint32_t, given_32)
COPY_IDS(copy_64_as_32, uint32_t, given_64)

/* Asks for memory that is read soon. Processors do so by themselves only as far as a page goes, and
   a request lies in many: 26 arrays of 20 KB take 48 us so and 57 else, where none is cached. */
static void fetch(const char *from, size_t bytes) {
  for (size_t at = 0; at < bytes; at += LINE) __builtin_prefetch(from + at, 0, 2);
}

/* The first block of what is written soon. */
static void fetch_to_write(char *to, size_t bytes) {
  if (bytes > BLOCK) bytes = BLOCK;
  for (size_t at = 0; at < bytes; at += LINE) __builtin_prefetch(to + at, 1, 2);
}

static int copy_ids(char *to, const char *ids, size_t count, const struct input *input, int wide) {
  uint64_t least = input->least, limit = input->limit;
  if (wide) return copy_64_as_32((uint32_t *)to, (const given_64 *)ids, count, least, limit);
  if (input->id_bytes == 8)
    return copy_64((uint64_t *)to, (const given_64 *)ids, count, least, limit);
  return copy_32((uint32_t *)to, (const given_32 *)ids, count, (uint32_t)least, (uint32_t)limit);
}

/* Copies rows that adjoin. Returns whether an id is out of range. */
static int copy(char *to, const char *from, size_t bytes, const struct input *input, int wide) {
  if (!wide && !is_checked(input)) {
    memcpy(to, from, bytes);
    return 0;
  }
  size_t size = wide ? sizeof(int32_t) : (size_t)input->id_bytes; /* of an id, staged */
  int bad = 0;
  for (size_t at = 0; at < bytes; at += BLOCK) {
    size_t left = bytes - at, here = left < BLOCK ? left : BLOCK, next = left - here;
    fetch(from + ((at + here) << wide), (next < BLOCK ? next : BLOCK) << wide);
    bad |= copy_ids(to + at, from + (at << wide), here / size, input, wide);
  }
  return bad;
}

/* Rows `from` to `to` of a request, none or more. What lies in the staging memory already, as
   borrowed requests do, stays where it is. */
static int copy_rows(const struct rows *value, const struct input *input, size_t from, size_t to) {
  size_t bytes = input->row_bytes;
  char *staged = input->staged + from * bytes;
  if (value->first == input->staged) return any_bad(staged, (to - from) * bytes, input);
  const char *first = value->first + (ptrdiff_t)from * value->step;
  if (to - from == 1 || value->step == (ptrdiff_t)(bytes << value->wide))
    return copy(staged, first, (to - from) * bytes, input, value->wide);
  int bad = 0;
  for (size_t i = 0; i < to - from; i++)
    bad |= copy(staged + i * bytes, first + (ptrdiff_t)i * value->step, bytes, input, value->wide);
  return bad;
}

/* Makes rows up to `to` like the one at `from`. */
static void repeat(const struct input *input, size_t from, size_t to) {
  size_t done = input->row_bytes; /* doubled by each copy */
  char *first = input->staged + from * done, *end = input->staged + to * done;
  while (first + done < end) {
    size_t left = (size_t)(end - first) - done;
    size_t next = done < left ? done : left;
    memcpy(first + done, first, next);
    done += next;
  }
}

/* Fills rows `from` to `to` of a bucket: those of a request, and from `rows` on its first one. Who
   fills others than the first row may be ahead of who stages it. */
static int fill_rows(const struct rows *value, const struct input *input, size_t rows, size_t from,
                     size_t to) {
  size_t bytes = input->row_bytes, begin = from < rows ? rows : from;
  int bad = from < rows && copy_rows(value, input, from, to < rows ? to : rows);
  if (begin >= to) return bad;
  char *first = input->staged + begin * bytes;
  if (from == 0 || value->first == input->staged) memcpy(first, input->staged, bytes);
  else bad |= copy(first, value->first, bytes, input, value->wide);
  repeat(input, begin, to);
  return bad;
}
