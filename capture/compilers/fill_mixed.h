/* Fills one bucket with a request whose inputs do not all have a row for each row of it: a user side,
   jagged values, or both. Included by fill.c.

   Only requests that are right and fit are filled: what is anything else is left to Python, which
   says what is wrong, clamps, or cuts. */

enum kind { ROWS, INDEX, VALUES, OFFSETS, STARTS, LENGTHS }; /* as InputSpec has them */

struct mixed_input {
  struct input as; /* of values, one value is a row */
  int32_t kind;
  int32_t user;     /* whether its rows are those of users */
  int32_t along;    /* of values: the input that divides them */
  int32_t capacity; /* of values: for each row of a bucket */
};

struct recreplay_mixed {
  struct recreplay_fill common; /* without `rows`, `inputs` and `values` */
  struct input as_int64;        /* what offsets and lengths may be */
  struct input as_int32;
  size_t users; /* the most of a request */
  int32_t checks_index;
  const struct mixed_input *inputs;
  struct view *views; /* room for `count` */
};

struct measured {
  ptrdiff_t rows;
  ptrdiff_t users; /* 0 where there is no user side */
  ptrdiff_t needed; /* rows of the smallest bucket that has room for all */
  size_t bytes;
};

static int divides(const struct mixed_input *input) { return input->kind >= OFFSETS; }

/* Whether items lie one after another. */
static int is_dense(const struct view *view, size_t bytes) {
  return view->dimensions == 1 &&
         (view->shape[0] < 2 || view->strides[0] * view->unit == (ptrdiff_t)bytes);
}

/* Of what divides values, `wide` says whether it is of 64 bits. */
static int read_view(void *value, const struct mixed_input *input,
                     const struct recreplay_mixed *mixed, struct view *view) {
  const struct recreplay_fill *fill = &mixed->common;
  if (divides(input)) {
    if (view_of(value, &mixed->as_int64, fill, view)) {
      view->wide = 1;
      return is_dense(view, sizeof(int64_t));
    }
    return view_of(value, &mixed->as_int32, fill, view) && is_dense(view, sizeof(int32_t));
  }
  if (!view_of(value, &input->as, fill, view) || view->dimensions < 1) return 0;
  return input->kind != VALUES || is_dense(view, input->as.row_bytes << view->wide);
}

/* Reads what all values say of themselves. Returns whether they go together and somewhere. */
static int measure(void *values, const struct recreplay_mixed *mixed, struct measured *found) {
  size_t count = mixed->common.count;
  *found = (struct measured){0};
  if (PyTuple_Size(values) != (ptrdiff_t)count) return 0;
  for (size_t i = 0; i < count; i++)
    fetch_array(PyTuple_GetItem(values, (ptrdiff_t)i), &mixed->common);
  for (size_t i = 0; i < count; i++) {
    const struct mixed_input *input = &mixed->inputs[i];
    struct view *view = &mixed->views[i];
    if (!read_view(PyTuple_GetItem(values, (ptrdiff_t)i), input, mixed, view)) return 0;
    if (input->kind == VALUES) continue;
    ptrdiff_t *rows = input->user ? &found->users : &found->rows;
    ptrdiff_t mine = view->shape[0] - (input->kind == OFFSETS);
    if (mine < 1 || (*rows && mine != *rows)) return 0;
    *rows = mine;
    if (!divides(input) && !fits(view, &input->as, (size_t)mine)) return 0;
    if (!divides(input)) found->bytes += (size_t)mine * input->as.row_bytes;
  }
  if (!found->rows || found->users > (ptrdiff_t)mixed->users) return 0;
  found->needed = found->rows;
  for (size_t i = 0; i < count; i++) {
    const struct mixed_input *input = &mixed->inputs[i];
    if (input->kind != VALUES) continue;
    ptrdiff_t total = mixed->views[i].shape[0];
    ptrdiff_t needed = (total + input->capacity - 1) / input->capacity;
    if (input->user && needed > (ptrdiff_t)mixed->users) return 0;
    if (!input->user && needed > found->needed) found->needed = needed;
    found->bytes += (size_t)total * input->as.row_bytes;
  }
  return 1;
}

/* Stages where the values of each row begin, read once, so that what was checked is what is used:
   `staged` has two more than `most` rows. Returns whether they are right. */
#define STAGE_STARTS(name, Staged, Given)                                                       \
  static int name(Staged *staged, const Given *given, size_t count, size_t rows, size_t most,   \
                  int64_t total, int64_t room) {                                                \
    int64_t before = 0;                                                                         \
    int bad = 0;                                                                                \
    for (size_t i = 0; i < count; i++) {                                                        \
      int64_t start = ((const volatile Given *)given)[i];                                       \
      bad |= start < before || (i == 0 && start != 0);                                          \
      staged[i] = (Staged)(before = start);                                                     \
    }                                                                                           \
    bad |= count > rows ? before != total : before > total;                                     \
    for (size_t i = count; i <= most; i++) staged[i] = (Staged)total;                           \
    staged[most + 1] = (Staged)room;                                                            \
    return !bad;                                                                                \
  }
STAGE_STARTS(starts_64_64, int64_t, signed_64)
STAGE_STARTS(starts_64_32, int64_t, signed_32)
STAGE_STARTS(starts_32_64, int32_t, signed_64)
STAGE_STARTS(starts_32_32, int32_t, signed_32)

#define STAGE_LENGTHS(name, Staged, Given)                                                      \
  static int name(Staged *staged, const Given *given, size_t rows, size_t most,                 \
                  int64_t total) {                                                              \
    int64_t left = total;                                                                       \
    int bad = 0;                                                                                \
    for (size_t i = 0; i < rows; i++) {                                                         \
      int64_t length = ((const volatile Given *)given)[i];                                      \
      bad |= length < 0 || length > left;                                                       \
      left -= bad ? 0 : length;                                                                 \
      staged[i] = (Staged)length;                                                               \
    }                                                                                           \
    for (size_t i = rows; i < most; i++) staged[i] = 0;                                         \
    return !bad && left == 0;                                                                   \
  }
STAGE_LENGTHS(lengths_64_64, int64_t, signed_64)
STAGE_LENGTHS(lengths_64_32, int64_t, signed_32)
STAGE_LENGTHS(lengths_32_64, int32_t, signed_64)
STAGE_LENGTHS(lengths_32_32, int32_t, signed_32)

/* What divides the values of input `at`. */
static int stage_division(const struct recreplay_mixed *mixed, size_t at, size_t rows, size_t most) {
  const struct mixed_input *values = &mixed->inputs[at];
  const struct mixed_input *input = &mixed->inputs[values->along];
  const struct view *view = &mixed->views[values->along];
  int64_t total = mixed->views[at].shape[0], room = (int64_t)most * values->capacity;
  void *to = input->as.staged;
  const void *from = view->data;
  int wide = input->as.row_bytes == sizeof(int64_t);
  if (input->kind == LENGTHS) {
    if (wide && view->wide) return lengths_64_64(to, from, rows, most, total);
    if (wide) return lengths_64_32(to, from, rows, most, total);
    if (view->wide) return lengths_32_64(to, from, rows, most, total);
    return lengths_32_32(to, from, rows, most, total);
  }
  size_t count = rows + (input->kind == OFFSETS);
  if (wide && view->wide) return starts_64_64(to, from, count, rows, most, total, room);
  if (wide) return starts_64_32(to, from, count, rows, most, total, room);
  if (view->wide) return starts_32_64(to, from, count, rows, most, total, room);
  return starts_32_32(to, from, count, rows, most, total, room);
}

/* Compares rows `from` to `to` of a bucket: those that are padded are right where the others are. */
static int users_are_there(const struct mixed_input *input, size_t from, size_t to,
                           ptrdiff_t users) {
  const char *index = input->as.staged + from * input->as.row_bytes;
  if (input->as.row_bytes == sizeof(int64_t))
    return !any_beyond_64((const uint64_t *)index, to - from, 0, (uint64_t)users);
  return !any_beyond_32((const uint32_t *)index, to - from, 0, (uint32_t)users);
}

/* Values that belong to no row, from `from` to `to`: zeros, or the least ids where those would not
   do, of which a machine that begins with the lowest byte writes as many bytes as they have. */
static void leave_room(const struct input *input, size_t from, size_t to) {
  size_t bytes = input->row_bytes;
  char *room = input->staged + from * bytes, *end = input->staged + to * bytes;
  memset(room, 0, (to - from) * bytes);
  for (; input->least && room < end; room += bytes) memcpy(room, &input->least, bytes);
}

/* A share of the values that others divide: those staged, and the room behind them. */
static int stage_values(const struct mixed_input *input, const struct view *view, size_t most,
                        size_t at, size_t count) {
  const struct rows values = {view->data, (ptrdiff_t)input->as.row_bytes << view->wide, view->wide};
  size_t total = (size_t)view->shape[0], room = (size_t)input->capacity * most;
  size_t from = room * at / count, to = room * (at + 1) / count, end = to < total ? to : total;
  int bad = from < end && copy_rows(&values, &input->as, from, end);
  leave_room(&input->as, from < end ? end : from, to);
  return !bad;
}

struct mixed_job {
  const struct recreplay_mixed *mixed;
  const struct measured *found;
};

/* A share of all inputs. The first has what divides values whole. Returns whether something is
   wrong. */
static int stage_share(const void *given, size_t at, size_t count) {
  const struct mixed_job *job = given;
  const struct recreplay_mixed *mixed = job->mixed;
  for (size_t i = 0; i < mixed->common.count; i++) {
    const struct mixed_input *input = &mixed->inputs[i];
    const struct view *view = &mixed->views[i];
    size_t rows = (size_t)(input->user ? job->found->users : job->found->rows);
    size_t most = input->user ? mixed->users : mixed->common.size;
    if (divides(input)) continue; /* staged with the values */
    if (input->kind == VALUES) {
      if (at == 0 && !stage_division(mixed, i, rows, most)) return 1;
      if (!stage_values(input, view, most, at, count)) return 1;
      continue;
    }
    const struct rows value = {view->data, view->strides[0] * view->unit, view->wide};
    size_t from = most * at / count, to = most * (at + 1) / count;
    if (fill_rows(&value, &input->as, rows, from, to)) return 1;
    if (input->kind == INDEX && mixed->checks_index &&
        !users_are_there(input, from, to, job->found->users))
      return 1;
  }
  return 0;
}

/* The rows that were filled, or 0. */
static ptrdiff_t fill_mixed(void *values, const struct recreplay_mixed *mixed) {
  struct measured found;
  if (!measure(values, mixed, &found) || found.needed > (ptrdiff_t)mixed->common.size) return 0;
  const struct mixed_job job = {mixed, &found};
  return do_unlocked(stage_share, &job, found.bytes) ? 0 : found.rows;
}

void *recreplay_fill_mixed(void *self, void *values) {
  const struct recreplay_mixed *mixed = PyLong_AsVoidPtr(PyTuple_GetItem(self, 0));
  return PyLong_FromLong(fill_mixed(values, mixed));
}

/* The rows of the smallest bucket that would hold a request, or 0. */
void *recreplay_needed(void *self, void *values) {
  const struct recreplay_mixed *mixed = PyLong_AsVoidPtr(PyTuple_GetItem(self, 0));
  struct measured found;
  return PyLong_FromLong(measure(values, mixed, &found) ? found.needed : 0);
}
