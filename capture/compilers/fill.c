/* Fills the staging memory of one bucket in one call: checks the arrays of a request, copies their
   rows, pads with the first row, and looks for ids outside of their tables.

   Arrays and dtypes are read as numpy lays them out (PyArrayObject_fields and PyArray_Descr of
   ndarraytypes.h, the same in numpy 1 and 2). Whoever loads this library proves by
   `recreplay_reads` and `recreplay_same_dtype` that it is so in his process. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define UNLOCKED_FROM 65536 /* bytes; copying fewer takes less than handing the lock over */

#if defined(__x86_64__) && defined(__GLIBC__)
#define ANY_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define ANY_CPU
#endif

struct dtype {
  ptrdiff_t references;
  void *type;
  void *scalar;
  char kind;
  char letter;
  char order;
  char flags;
  int32_t number;
};

struct array {
  ptrdiff_t references;
  void *type;
  char *data;
  int dimensions;
  ptrdiff_t *shape;
  ptrdiff_t *strides;
  void *base;
  const struct dtype *dtype;
};

struct input {
  char *staged;
  const struct dtype *dtype;
  const ptrdiff_t *row; /* the shape of one row */
  size_t row_bytes;
  uint64_t limit; /* ids must be below; not looked at where `id_bytes` is 0 */
  int32_t row_dimensions;
  int32_t id_bytes; /* 4 or 8 */
};

struct recreplay_fill {
  void *type; /* numpy.ndarray */
  size_t rows; /* of a request */
  size_t size; /* of the bucket */
  size_t row_bytes; /* of all inputs */
  size_t count;
  const struct input *inputs;
  const struct array **arrays; /* room for `count` */
};

enum { FILLED, OTHER_ARRAYS, BAD_IDS };

extern void *PyTuple_GetItem(void *, ptrdiff_t); /* Python's stable ABI */
extern ptrdiff_t PyTuple_Size(void *);
extern void *PyEval_SaveThread(void);
extern void PyEval_RestoreThread(void *);

int32_t recreplay_reads(const struct array *array, const void *type, const void *data,
                        int32_t dimensions, const ptrdiff_t *shape, const void *dtype) {
  if (array->type != type || array->data != data || array->dimensions != dimensions) return 0;
  for (int i = 0; i < dimensions; i++)
    if (array->shape[i] != shape[i]) return 0;
  return array->dtype == dtype;
}

/* The same object, or one like it: what was pickled has dtypes of its own. */
int32_t recreplay_same_dtype(const struct dtype *a, const struct dtype *b) {
  return a == b || (a->type == b->type && a->scalar == b->scalar && a->kind == b->kind &&
                    a->letter == b->letter && a->order == b->order && a->number == b->number);
}

ANY_CPU static int any_above_64(const uint64_t *ids, size_t count, uint64_t limit) {
  uint64_t above = 0;
  for (size_t i = 0; i < count; i++) above |= ids[i] >= limit;
  return above != 0;
}

ANY_CPU static int any_above_32(const uint32_t *ids, size_t count, uint32_t limit) {
  uint32_t above = 0;
  for (size_t i = 0; i < count; i++) above |= ids[i] >= limit;
  return above != 0;
}

/* Compared without a sign: negative ids are above every limit. */
static int any_bad(const struct input *input, size_t rows) {
  size_t bytes = rows * input->row_bytes;
  if (input->id_bytes == 8)
    return any_above_64((const uint64_t *)input->staged, bytes / 8, input->limit);
  if (input->id_bytes == 4 && input->limit <= UINT32_MAX)
    return any_above_32((const uint32_t *)input->staged, bytes / 4, (uint32_t)input->limit);
  return 0;
}

static int fits(const struct array *array, const struct input *input, size_t rows, void *type) {
  if (array->type != type || !recreplay_same_dtype(array->dtype, input->dtype)) return 0;
  if (array->dimensions != input->row_dimensions + 1 || array->shape[0] != (ptrdiff_t)rows)
    return 0;
  ptrdiff_t step = (ptrdiff_t)input->row_bytes;
  for (int i = 0; i < input->row_dimensions; i++) {
    if (array->shape[i + 1] != input->row[i]) return 0;
    step /= input->row[i] ? input->row[i] : 1;
    if (input->row[i] > 1 && array->strides[i + 1] != step) return 0;
  }
  return 1;
}

static void copy(const struct array *array, const struct input *input, size_t rows) {
  size_t bytes = input->row_bytes;
  ptrdiff_t step = array->strides[0];
  if (rows == 1 || step == (ptrdiff_t)bytes)
    memcpy(input->staged, array->data, rows * bytes);
  else
    for (size_t i = 0; i < rows; i++)
      memcpy(input->staged + i * bytes, array->data + (ptrdiff_t)i * step, bytes);
}

static void pad(const struct input *input, size_t rows, size_t size) {
  char *end = input->staged + size * input->row_bytes;
  char *to = input->staged + rows * input->row_bytes;
  size_t done = input->row_bytes; /* doubled by each copy */
  if (to == end) return;
  memcpy(to, input->staged, done);
  while (to + done < end) {
    size_t left = (size_t)(end - to) - done;
    size_t next = done < left ? done : left;
    memcpy(to + done, to, next);
    done += next;
  }
}

static int32_t filled(const struct recreplay_fill *fill, int copies) {
  int bad = 0;
  for (size_t i = 0; i < fill->count; i++) {
    const struct input *input = &fill->inputs[i];
    if (copies) copy(fill->arrays[i], input, fill->rows);
    bad |= any_bad(input, fill->rows);
    pad(input, fill->rows, fill->size);
  }
  return bad ? BAD_IDS : FILLED;
}

/* `values`: a tuple of arrays. Nothing is copied before all of them have proved right. */
int32_t recreplay_fill(void *values, const struct recreplay_fill *fill) {
  if (PyTuple_Size(values) != (ptrdiff_t)fill->count) return OTHER_ARRAYS;
  for (size_t i = 0; i < fill->count; i++) {
    const struct array *array = PyTuple_GetItem(values, (ptrdiff_t)i);
    if (!fits(array, &fill->inputs[i], fill->rows, fill->type)) return OTHER_ARRAYS;
    fill->arrays[i] = array;
  }
  if (fill->rows * fill->row_bytes < UNLOCKED_FROM) return filled(fill, 1);
  void *thread = PyEval_SaveThread();
  int32_t code = filled(fill, 1);
  PyEval_RestoreThread(thread);
  return code;
}

/* The same for a request that was written into the staging memory. */
int32_t recreplay_in_place(const struct recreplay_fill *fill) { return filled(fill, 0); }
